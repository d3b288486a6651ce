// Sign in: exchange the API key for a cookie that no script can read. The key itself is not stored.

const KEY_OF_EARLIER_RELEASES = "longcat_key";

export async function current() {
  const response = await fetch("/session");
  return response.ok ? response.json() : null;
}

export async function signIn(key) {
  const response = await fetch("/session", { method: "POST", headers: { Authorization: `Bearer ${key}` } });
  if (!response.ok) throw new Error((await response.json()).error.message);
}

export async function signOut() {
  await fetch("/session", { method: "DELETE" });
}

export function forgetKeys() {
  localStorage.removeItem(KEY_OF_EARLIER_RELEASES);
  document.cookie = `${KEY_OF_EARLIER_RELEASES}=; Path=/; Max-Age=0`;
}
