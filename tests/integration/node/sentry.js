// Sends one of each of what an application with @sentry/node sends. Usage: sentry.js PACKAGE DSN
"use strict";
const Sentry = require(process.argv[2]);

Sentry.init({ dsn: process.argv[3], release: "shop@1.2.3", tracesSampleRate: 1, enableLogs: true });
// Put together here: a source line that holds an id is the program's own and would stay as it is.
Sentry.setUser({ id: ["planted", "account"].join("-"), email: "alice.planted@example.org" });

async function main() {
  Sentry.startSession();
  await Sentry.startSpan({ name: "GET /orders", op: "http.server" }, async () => {
    console.log("order of alice.planted@example.org");
    Sentry.captureException(new TypeError("no mail to alice.planted@example.org \ud83d"));
  });
  Sentry.captureException(new Error("x".repeat(40_000))); // gzip begins at 32 KiB
  const id = Sentry.captureCheckIn({ monitorSlug: "nightly", status: "in_progress" });
  Sentry.captureCheckIn({ checkInId: id, monitorSlug: "nightly", status: "ok", duration: 1.5 });
  if (Sentry.logger) Sentry.logger.info("alice.planted@example.org has logged in");
  Sentry.endSession();
  if (!(await Sentry.close(10_000))) throw new Error("not everything was delivered");
}

main().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
