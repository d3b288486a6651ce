// Call the API of the service.

export class ApiError extends Error {
  constructor(status, message) {
    super(message ?? `the service answered ${status}`);
    this.status = status;
  }
}

// Return the JSON of the answer, or null if there is none. Throw ApiError for a refusal.
export async function call(path, options) {
  const response = await fetch(path, options);
  const body = response.headers.get("Content-Type")?.includes("json") ? await response.json() : null;
  if (!response.ok) throw new ApiError(response.status, body?.error?.message);
  return body;
}

export function post(path, body) {
  if (body instanceof FormData) return call(path, { method: "POST", body });
  const headers = body && { "Content-Type": "application/json" };
  return call(path, { method: "POST", headers, body: body && JSON.stringify(body) });
}
