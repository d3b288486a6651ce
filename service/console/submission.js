// Submit requests, so that sending one again after a lost answer makes no second job.

import { isOutage, post } from "./api.js";

const keys = new Map(); // the content of a request → its idempotency key, until the service has answered

// Return the job. The same request has the same key until it is answered.
export async function submit(path, body) {
  const content = `${path} ${contentOf(body)}`;
  if (!keys.has(content)) keys.set(content, newKey());
  try {
    const job = await post(path, body, { "Idempotency-Key": keys.get(content) });
    keys.delete(content);
    return job;
  } catch (error) {
    if (!isOutage(error)) keys.delete(content); // refused: nothing was made
    throw error;
  }
}

function contentOf(body) {
  if (!(body instanceof FormData)) return JSON.stringify(body);
  const file = ({ name, size, lastModified }) => [name, size, lastModified];
  return JSON.stringify([...body].map(([name, value]) => [name, value instanceof File ? file(value) : value]));
}

// crypto.randomUUID exists only on pages from https and from this machine.
function newKey() {
  return Array.from(crypto.getRandomValues(new Uint32Array(4)), (word) => word.toString(16).padStart(8, "0")).join("");
}
