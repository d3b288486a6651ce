// Build the curl command that requests the same video again, with the same seed. Input files are those that the job
// has; the key is a variable.

import { format } from "./api.js";

export function curl(job, origin, withKey) {
  const { fps, refinement, ...request } = job.request; // these two follow from the others
  const given = Object.entries({ ...request, metadata: job.metadata }).filter(([, value]) => value !== null);
  const key = withKey ? ['-H "Authorization: Bearer $LONGCAT_API_KEY"'] : [];
  const body = ["-H 'Content-Type: application/json'", `-d ${quoted(format(Object.fromEntries(given)))}`];
  return [`curl ${origin}/generate`, ...key, ...body].join(" \\\n  ");
}

function quoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
