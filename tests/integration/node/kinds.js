// Sends what sentry.js does not: traces, logs, metrics, feedback. Usage: kinds.js PACKAGE DSN
"use strict";
const http = require("node:http");
const Sentry = require(process.argv[2]);

const mail = ["alice.planted", "example.org"].join("@");
const person = { id: String(7744556 * 1000 + 123), email: mail, ip_address: "203.0.113.77" };
Sentry.init({
  dsn: process.argv[3],
  release: "shop@1.2.3",
  tracesSampleRate: 1,
  enableLogs: true,
  enableMetrics: true,
  sendDefaultPii: true,
});
Sentry.setUser(person);

async function main() {
  const server = http.createServer((request, response) => response.end("ok"));
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  const url = `http://127.0.0.1:${server.address().port}/users/${person.id}?mail=${mail}`;
  await Sentry.startSpan({ name: `GET /orders?mail=${mail}`, op: "http.server" }, async () => {
    const headers = { authorization: "Bearer planted-token-77", "x-forwarded-for": "203.0.113.77" };
    await fetch(url, { headers });
    Sentry.logger.info(`${mail} has logged in`, { who: mail });
    Sentry.metrics.count("orders", 1, { attributes: { who: mail } });
    Sentry.metrics.distribution("latency", 3.5, { unit: "millisecond" });
  });
  Sentry.captureFeedback({ message: `call ${mail}`, email: mail, name: "Alice", url });
  Sentry.getCurrentScope().addAttachment({ filename: "a.txt", data: mail });
  Sentry.captureException(new TypeError(`no mail to ${mail}`));
  server.close();
  server.closeAllConnections();
  if (!(await Sentry.close(10_000))) throw new Error("not everything was delivered");
}

main().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
