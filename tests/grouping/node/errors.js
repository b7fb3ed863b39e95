// Ten errors that put a person's data where JavaScript applications do. Each throws or rejects.
"use strict";

class PaymentError extends Error {
  name = "PaymentError";
}

exports.kinds = {
  message(who) {
    throw new Error(`no mail to ${who.email} from ${who.ipv4}`);
  },
  property(who) {
    return who.email.contact.address;
  },
  reference(who) {
    return undeclared(who.email); // eslint-disable-line no-undef
  },
  call(who) {
    const people = { email: who.email };
    return people.notify();
  },
  location(who) {
    return decodeURIComponent(`%${who.email}`);
  },
  expression(who) {
    return new RegExp(`[${who.email}`);
  },
  text(who) {
    throw `cannot charge ${who.iban} of ${who.email}`;
  },
  thing(who) {
    throw { email: who.email, phone: who.phone };
  },
  chained(who) {
    try {
      exports.kinds.message(who);
    } catch (cause) {
      throw new PaymentError(`${who.email} cannot pay by ${who.iban}`, { cause });
    }
  },
  aggregate(who) {
    return Promise.any([
      Promise.reject(new Error(`${who.email} is locked`)),
      Promise.reject(new PaymentError(`Tel. ${who.phone}`)),
    ]);
  },
};
