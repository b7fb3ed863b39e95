// Sends one event and one user with heap-api, whose host is fixed. Usage: heap.js BASE_URL
"use strict";
const Client = require("heap-api/lib/client.js");

const request = Client.prototype._request;
Client.prototype._request = function (options, callback) {
  options.url = options.url.replace("https://heapanalytics.com", process.argv[2]);
  return request.call(this, options, callback);
};

async function main() {
  const client = new Client("11");
  await client.track("page viewed", "4711", { page: "/board", mail: "alice.planted@example.org" });
  await client.addUserProperties("4711", { plan: "team", name: "alice.planted@example.org" });
}

main().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
