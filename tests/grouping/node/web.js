// The entry of the page: @sentry/browser and the application in one bundle.
"use strict";
const Sentry = require("@sentry/browser");
const app = require("./app.js");

window.start = async function start(way, who, transport) {
  Sentry.init({
    dsn: "http://pub@127.0.0.1:1/1",
    release: "shop@1.2.3",
    transport: transport(Sentry.createTransport),
  });
  Sentry.setUser({ id: who.account, email: who.email, username: who.username });
  await app.run(way, who, (error) => Sentry.captureException(error));
  return Sentry.close(10_000);
};
