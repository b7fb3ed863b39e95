"""One host application's library a module: each is imported by name, none by itself."""
