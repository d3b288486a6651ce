// Call the API of the service.

const NO_WORKER = ["no_worker", "no_suitable_worker"]; // the service answers: waiting does not help soon

export class ApiError extends Error {
  constructor(status, error) {
    super(error?.message ?? `the service answered ${status}`);
    this.status = status;
    this.code = error?.code;
  }
}

// Return the JSON of the answer, or null if there is none. Throw ApiError for a refusal.
export async function call(path, options) {
  const response = await fetch(path, options);
  const body = response.headers.get("Content-Type")?.includes("json") ? parse(await response.text()) : null;
  if (!response.ok) throw new ApiError(response.status, body?.error);
  return body;
}

// Return the value of a JSON text. A seed of more digits than a number holds stays text.
export function parse(text) {
  const exact = (_, value, { source } = {}) => (Number.isInteger(value) && !Number.isSafeInteger(value) && source) || value;
  return JSON.parse(text, exact);
}

// Return the JSON text of a request that may have such a seed.
export function format(request) {
  const exact = (name, value) => (name === "seed" && typeof value === "string" ? JSON.rawJSON(value) : value);
  return JSON.stringify(request, exact);
}

export function post(path, body, headers = {}) {
  if (body instanceof FormData) return call(path, { method: "POST", headers, body });
  const type = body && { "Content-Type": "application/json" };
  return call(path, { method: "POST", headers: { ...headers, ...type }, body: body && format(body) });
}

// Tell whether the service could not be reached or could not serve, so that the same call may succeed soon.
export function isOutage(error) {
  return error instanceof TypeError || ([502, 503, 504].includes(error.status) && !NO_WORKER.includes(error.code));
}

export function describe(error) {
  if (!(error instanceof TypeError)) return error.message;
  return navigator.onLine ? "the service cannot be reached" : "you are offline";
}
