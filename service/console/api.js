// Call the API of the service.

const NO_WORKER = ["no_worker", "no_suitable_worker"]; // the service answers: waiting does not help soon

export class ApiError extends Error {
  constructor(status, error) {
    super(error?.message ?? `the service answered ${status}`);
    this.status = status;
    this.code = error?.code;
  }
}

// The service could not be reached. An error of `fetch` itself is a TypeError, as many programming errors are.
export class NetworkError extends Error {
  constructor(cause) {
    super(navigator.onLine ? "the service cannot be reached" : "you are offline", { cause });
  }
}

async function reached(answer) {
  try { return await answer; } catch (error) { throw new NetworkError(error); }
}

// Return the response, whatever its status is. Throw NetworkError.
export function send(path, options) {
  return reached(fetch(path, options));
}

// Return the JSON of the answer, or null if there is none. Throw ApiError for a refusal, NetworkError.
export async function call(path, options) {
  const response = await send(path, options);
  const text = await reached(response.text());
  const body = response.headers.get("Content-Type")?.includes("json") ? parse(text) : null;
  if (!response.ok) throw new ApiError(response.status, body?.error);
  return body;
}

// Return the JSON of the answer, or null for a refusal.
export async function callOrNull(path) {
  try { return await call(path); } catch (error) {
    if (error instanceof ApiError) return null;
    throw error;
  }
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
  return error instanceof NetworkError || ([502, 503, 504].includes(error.status) && !NO_WORKER.includes(error.code));
}
