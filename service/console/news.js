// Announce changes to screen readers: a few at a time, so that many jobs that end together do not flood them.

import { announcement, ANNOUNCEMENTS } from "./words.js";

const DELAY_MS = 1000;
const MAX_NAMED = 2; // jobs that are named; more are counted

const region = document.getElementById("news");
const pending = new Map(); // id → the job in its latest state
let timer = null;

export function announce(job) {
  pending.set(job.id, job);
  timer ??= setTimeout(tell, DELAY_MS);
}

// Say something at once.
export function say(text) {
  region.textContent = text;
}

function tell() {
  timer = null;
  const jobs = [...pending.values()];
  pending.clear();
  say(jobs.length <= MAX_NAMED ? jobs.map(announcement).join(". ") : counts(jobs));
}

function counts(jobs) {
  const statuses = [...new Set(jobs.map((job) => job.status))];
  return statuses.map((status) => `${jobs.filter((job) => job.status === status).length} jobs: ${ANNOUNCEMENTS[status]}`).join(". ");
}
