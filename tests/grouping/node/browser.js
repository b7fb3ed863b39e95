// Errors of @sentry/browser in jsdom. Usage: browser.js FILE WAY DEBUG_ID PERSON; FILE: URL of the bundle.
"use strict";
const vm = require("node:vm");
const { JSDOM } = require("jsdom");
const bundle = require("./bundle.js");
const { transport, finish } = require("./envelopes.js");

const [file, way, id, person] = process.argv.slice(2);
const dom = new JSDOM("<!doctype html><title>Shop</title>", {
  url: "https://app.example.com/orders/4711?email=jane@example.org",
  runScripts: "outside-only",
  pretendToBeVisual: true,
});
for (const name of ["fetch", "Request", "Response", "Headers", "TextEncoder", "TextDecoder"]) {
  dom.window[name] = globalThis[name];
}
const script = new vm.Script(bundle("web.js", "browser", id, true), { filename: file });
script.runInContext(dom.getInternalVMContext());
dom.window.start(way, JSON.parse(person), transport).then(finish);
