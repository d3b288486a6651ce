// The list of jobs: pages, filters, and changes as they happen.

import { call } from "./api.js";
import * as card from "./card.js";
import { announcement } from "./words.js";

const PAGE_SIZE = 20;
const MAX_EMPTY_PAGES = 5; // a filtered page may be empty although jobs follow
const MAX_WATCHED = 20;
const SEARCH_DELAY_MS = 300;

const $ = (id) => document.getElementById(id);
const list = $("jobs");
let next = null; // the cursor of the next page
let generation = 0; // counts changes of the filter: answers to earlier ones are dropped
let isLoading = false;
let stream = null; // { ids, source }: the event stream of the jobs that have not ended
const end = new IntersectionObserver(([entry]) => entry.isIntersecting && loadMore(), { rootMargin: "600px" });
let onAction = () => {};
let onError = () => {};

export function start(actions, errors) {
  [onAction, onError] = [actions, errors];
  let timer;
  $("filter").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(reload, SEARCH_DELAY_MS);
  });
  $("filter").addEventListener("submit", (event) => event.preventDefault());
  $("more").addEventListener("click", loadMore);
  end.observe($("more"));
}

// Forget all jobs and load the first page.
export async function reload() {
  generation += 1;
  list.replaceChildren();
  next = null;
  await refresh().catch(onError);
}

// Load the newest jobs again: add new ones and remove those that are gone.
export async function refresh() {
  const page = await load(null);
  if (!page) return;
  const present = new Set(page.jobs.map((job) => job.id));
  const oldest = page.next ? page.jobs.at(-1)?.created_at ?? "" : "";
  for (const shown of [...list.children])
    if (!present.has(shown.dataset.id) && shown.dataset.createdAt >= oldest) shown.remove();
  if (list.children.length <= page.jobs.length) setNext(page.next);
  showAll(page.jobs);
  $("empty").hidden = list.children.length > 0 || isFiltered();
  $("nothing").hidden = list.children.length > 0 || !isFiltered() || next !== null;
  watch();
}

export async function loadMore() {
  if (isLoading || next === null) return;
  isLoading = true;
  try {
    for (let count = 0, found = 0; count < MAX_EMPTY_PAGES && !found && next !== null; count += 1) {
      const page = await load(next);
      if (!page) return;
      showAll(page.jobs);
      found = page.jobs.length;
      setNext(page.next);
    }
    watch();
  } catch (error) { onError(error); return; } finally { isLoading = false; }
  end.unobserve($("more"));
  end.observe($("more")); // loads another page if the end is still near
}

async function load(after) {
  const asked = generation;
  const query = new URLSearchParams({ limit: PAGE_SIZE });
  for (const [name, value] of new FormData($("filter"))) if (value.trim()) query.set(name, value.trim());
  if (after) query.set("after", after);
  const page = await call(`/jobs?${query}`);
  return asked === generation ? page : null;
}

function setNext(cursor) {
  next = cursor;
  $("more").hidden = cursor === null;
}

function isFiltered() {
  return [...new FormData($("filter")).values()].some((value) => value.trim());
}

// Show a page of jobs in its order, also those that were submitted in the same millisecond.
function showAll(jobs) {
  jobs.forEach(show);
  for (let index = 1; index < jobs.length; index += 1) {
    const [before, shown] = [find(jobs[index - 1].id), find(jobs[index].id)];
    if (before.compareDocumentPosition(shown) & Node.DOCUMENT_POSITION_PRECEDING) before.after(shown);
  }
}

// Show the present state of a job, on its card or on a new one.
export function show(job) {
  let shown = find(job.id);
  if (!shown) {
    shown = card.create(job, onAction);
    const newer = [...list.children].findLast((other) => other.dataset.createdAt > job.created_at);
    newer ? newer.after(shown) : list.prepend(shown);
    $("empty").hidden = $("nothing").hidden = true;
  }
  if (shown.dataset.status && shown.dataset.status !== job.status) $("news").textContent = announcement(job);
  card.fill(shown, job);
}

export function find(jobId) {
  return list.querySelector(`[data-id="${CSS.escape(jobId)}"]`);
}

// Follow the jobs that have not ended, all on one connection.
export function watch() {
  const active = [...list.children].filter((shown) => !card.ENDED.has(shown.dataset.status));
  const waiting = active.filter((shown) => shown.dataset.status === "queued").reverse(); // the oldest come next
  const chosen = [...active.filter((shown) => shown.dataset.status !== "queued"), ...waiting].slice(0, MAX_WATCHED);
  const ids = chosen.map((shown) => shown.dataset.id).sort().join(" ");
  if (stream?.ids === ids && stream.source.readyState !== EventSource.CLOSED) return;
  stream?.source.close();
  stream = ids ? { ids, source: openStream(ids.split(" ")) } : null;
}

function openStream(ids) {
  const source = new EventSource(`/events?jobs=${ids.join()}`);
  const update = (event) => {
    const job = JSON.parse(event.data);
    if (find(job.id)) show(job); // it may have been deleted meanwhile
  };
  for (const kind of ["status", "progress"]) source.addEventListener(kind, update);
  source.addEventListener("done", (event) => { update(event); watch(); });
  source.onerror = () => source.close(); // the next refresh opens it again
  return source;
}
