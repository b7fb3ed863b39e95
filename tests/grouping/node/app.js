// The application: runs each error one way or another and has it captured.
"use strict";
const { kinds } = require("./errors.js");

const ways = {
  async caught(kind, who, capture) {
    try {
      await kinds[kind](who);
    } catch (error) {
      capture(error);
    }
  },
  async awaited(kind, who, capture) {
    const request = async () => {
      await Promise.resolve();
      return await kinds[kind](who);
    };
    await request().catch((error) => capture(error));
  },
  timer(kind, who, capture) {
    return new Promise((resolve) => {
      setTimeout(async () => {
        await ways.caught(kind, who, capture);
        resolve();
      }, 0);
    });
  },
};

exports.run = async function run(way, who, capture) {
  for (const kind of Object.keys(kinds)) {
    await ways[way](kind, who, capture);
  }
};
