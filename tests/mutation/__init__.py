"""Every rule, treatment and annotation is needed: without it, a check of the tests fails."""
