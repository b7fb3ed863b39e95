// Errors of @sentry/node. Usage: node.js FILE WAY DEBUG_ID PERSON [write]
// FILE: where the bundle says it lies; with `write` it really does, so that the client reads its lines.
"use strict";
const fs = require("node:fs");
const vm = require("node:vm");
const Sentry = require("@sentry/node");
const bundle = require("./bundle.js");
const { transport, finish } = require("./envelopes.js");

const [file, way, id, person, write] = process.argv.slice(2);
const who = JSON.parse(person);
const code = `(function (module, exports, require) {${bundle("app.js", "node", id, false)}\n})`;
if (write) fs.writeFileSync(file, code);

Sentry.init({
  dsn: "http://pub@127.0.0.1:1/1",
  release: "shop@1.2.3",
  transport: transport(Sentry.createTransport),
});
Sentry.setUser({ id: who.account, email: who.email, username: who.username });

const app = { exports: {} };
vm.runInThisContext(code, { filename: file })(app, app.exports, require);
app.exports
  .run(way, who, (error) => Sentry.captureException(error))
  .then(() => Sentry.close(10_000))
  .then(finish);
