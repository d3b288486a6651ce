// The API key, where the service asks for one: kept in this browser. Films and event streams are loaded without
// headers, so a cookie has it too; the service takes that for reading alone.

const NAME = "longcat_key";
const YEAR_S = 365 * 86400;

export function headers() {
  const key = localStorage.getItem(NAME);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

export function isKept() {
  return localStorage.getItem(NAME) !== null;
}

export function keep(key) {
  key ? localStorage.setItem(NAME, key) : localStorage.removeItem(NAME);
  const secure = location.protocol === "https:" ? "; Secure" : "";
  document.cookie = `${NAME}=${encodeURIComponent(key)}; Path=/; SameSite=Strict; Max-Age=${key ? YEAR_S : 0}${secure}`;
}
