// Bundles an application as a build does: with a debug id inside. Usage: bundle(entry, platform, id)
"use strict";
const { buildSync } = require("esbuild");

// As bundler plug-ins do it: the id is filed under a stack that names this file.
const register = (id) => `;(globalThis._sentryDebugIds ??= {})[new Error().stack] = "${id}";`;

module.exports = function bundle(entry, platform, id, minify) {
  const { outputFiles } = buildSync({
    entryPoints: [entry],
    absWorkingDir: __dirname,
    bundle: true,
    write: false,
    minify,
    platform,
    format: platform === "node" ? "cjs" : "iife",
    target: platform === "node" ? "node20" : "chrome120",
    banner: { js: register(id) },
    logLevel: "error",
  });
  return outputFiles[0].text;
};
