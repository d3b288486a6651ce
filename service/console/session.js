// Sign in: exchange the API key for a cookie that no script can read. The key itself is not stored.

import { call, callOrNull } from "./api.js";

const KEY_OF_EARLIER_RELEASES = "longcat_key";

export function current() {
  return callOrNull("/session");
}

export async function signIn(key) {
  await call("/session", { method: "POST", headers: { Authorization: `Bearer ${key}` } });
}

export async function signOut() {
  await call("/session", { method: "DELETE" });
}

export function forgetKeys() {
  localStorage.removeItem(KEY_OF_EARLIER_RELEASES);
  document.cookie = `${KEY_OF_EARLIER_RELEASES}=; Path=/; Max-Age=0`;
}
