// The list of jobs: pages, filters, and changes as they happen.

import { call, parse, send } from "./api.js";
import * as card from "./card.js";
import { announce } from "./news.js";

const FIRST_PAGE_SIZE = 20;
const PAGE_SIZE = 50; // of older jobs
const MAX_EMPTY_PAGES = 5; // a filtered page may be empty although jobs follow
const MAX_WATCHED = 50; // as many as one event stream can have
const SEARCH_DELAY_MS = 300;
const SCROLL_DELAY_MS = 300;

const $ = (id) => document.getElementById(id);
const list = $("jobs");
const cards = new Map(); // job id → card
const inView = new Set(); // cards that are on the screen
let typicalHeight = 240; // in pixels, of a card that was not filled yet
let laidOutAt = 0; // when the layout changed last: heights that were observed before are those of another one
let next = null; // the cursor of the next page
let generation = 0; // counts changes of the filter: answers to earlier ones are dropped
let isLoading = false;
let searchTimer = null; // runs out some time after the last change of the filter
let stream = null; // { ids, source, hasOpened }: the event stream of jobs that have not ended
let onAction = () => {};
let onError = () => {};
let onLost = () => {};

const end = new IntersectionObserver(([entry]) => entry.isIntersecting && loadMore(), { rootMargin: "600px" });
const near = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting, boundingClientRect, time } of entries) {
      if (isIntersecting) card.render(target);
      else if (target.hasChildNodes()) {
        if (time > laidOutAt) typicalHeight = boundingClientRect.height; // to ask the card would lay out the page for each
        card.empty(target, typicalHeight);
      }
    }
  },
  { rootMargin: "1200px" },
);
const screen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) inView[isIntersecting ? "add" : "delete"](target);
  watchSoon();
});
let width = 0;
const size = new ResizeObserver(([{ contentRect }]) => {
  if (contentRect.width !== width && width) measureAgain();
  width = contentRect.width;
});

// `onLost()` is called when the event stream breaks, which is often the first sign of an outage.
export function start(callbacks) {
  ({ onAction, onError, onLost } = callbacks);
  $("filter").addEventListener("input", () => {
    clearTimeout(searchTimer);
    searchTimer = setTimeout(reload, SEARCH_DELAY_MS);
  });
  $("filter").addEventListener("submit", (event) => event.preventDefault());
  $("more").addEventListener("click", loadMore);
  size.observe(list);
}

// Forget all jobs and load the first page.
export async function reload() {
  clearTimeout(searchTimer);
  generation += 1;
  $("batch").hidden = !$("filter").elements.batch.value;
  for (const id of [...cards.keys()]) remove(id);
  next = null;
  await refresh().catch(onError);
}

// Load the newest jobs again: add new ones and remove those that are gone.
export async function refresh() {
  const page = await load(null);
  if (!page) return;
  if (page.next && cards.size && !page.jobs.some((job) => cards.has(job.id))) {
    for (const id of [...cards.keys()]) remove(id); // so much is new that jobs between would be missing
  }
  const present = new Set(page.jobs.map((job) => job.id));
  const oldest = page.next ? page.jobs.at(-1)?.created_at ?? "" : "";
  for (const [id, shown] of cards) if (!present.has(id) && shown.dataset.createdAt > oldest) remove(id);
  if (cards.size <= page.jobs.length) setNext(page.next);
  showAll(page.jobs);
  showWhetherEmpty();
  if (stream?.source.readyState === EventSource.CLOSED && !stream.hasOpened) await removeDeleted(stream, present);
  watch();
  lookForEnd(); // an earlier attempt may have failed
}

function showWhetherEmpty() {
  $("empty").hidden = cards.size > 0 || isFiltered();
  $("nothing").hidden = cards.size > 0 || !isFiltered() || next !== null;
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
    showWhetherEmpty();
    watch();
  } catch (error) { onError(error); return; } finally { isLoading = false; }
  lookForEnd();
}

// Load another page if the end is near.
function lookForEnd() {
  end.unobserve($("more"));
  end.observe($("more"));
}

async function load(after) {
  const asked = generation;
  const query = new URLSearchParams({ limit: after ? PAGE_SIZE : FIRST_PAGE_SIZE });
  for (const [name, value] of new FormData($("filter"))) if (value.trim()) query.set(name, value.trim());
  if (after) query.set("after", after);
  const page = await call(`/jobs?${query}`);
  return asked === generation ? page : null;
}

function setNext(cursor) {
  next = cursor;
  $("more").hidden = cursor === null;
}

export function isFiltered() {
  return [...new FormData($("filter")).values()].some((value) => value.trim());
}

// Show a page of jobs in its order, also those that were submitted in the same millisecond.
function showAll(jobs) {
  jobs.forEach(show);
  for (let index = 1; index < jobs.length; index += 1) {
    const [before, shown] = [cards.get(jobs[index - 1].id), cards.get(jobs[index].id)];
    if (before.compareDocumentPosition(shown) & Node.DOCUMENT_POSITION_PRECEDING) before.after(shown);
  }
}

// Show the current state of a job, on its card or on a new one.
export function show(job) {
  let shown = cards.get(job.id);
  if (!shown) {
    shown = card.create(job, onAction);
    cards.set(job.id, shown);
    insert(shown);
    card.fill(shown, job);
    shown.style.height = `${typicalHeight}px`;
    near.observe(shown); // fills it if it is near
    screen.observe(shown);
    $("empty").hidden = $("nothing").hidden = true;
    return;
  }
  if (shown.dataset.status !== job.status) announce(job);
  card.fill(shown, job);
}

// Insert a card in the order of submission, the newest first.
function insert(shown) {
  let older = list.lastElementChild; // most new cards belong to the end
  while (older && older.dataset.createdAt < shown.dataset.createdAt) older = older.previousElementSibling;
  older ? older.after(shown) : list.prepend(shown);
}

export function find(jobId) {
  return cards.get(jobId);
}

// Bring the card of a job onto the screen and give it the focus. A filter that hides it is removed, and a job that is not
// in the list yet is loaded.
export async function goTo(jobId) {
  if (!cards.has(jobId) && isFiltered()) {
    $("filter").reset();
    await reload();
  }
  if (!cards.has(jobId)) show(await call(`/jobs/${jobId}`));
  const shown = cards.get(jobId);
  card.render(shown);
  shown.scrollIntoView({ block: "center" });
  shown.focus({ preventScroll: true });
}

// Remove the card of a job. If it has the focus, the card that takes its place gets it.
export function remove(jobId, hadFocus = cards.get(jobId)?.contains(document.activeElement)) {
  const shown = cards.get(jobId);
  if (!shown) return;
  const neighbour = shown.nextElementSibling ?? shown.previousElementSibling;
  for (const observer of [near, screen]) observer.unobserve(shown);
  inView.delete(shown);
  cards.delete(jobId);
  shown.remove();
  if (!hadFocus) return;
  if (!neighbour) { $("jobs-title").focus(); return; }
  card.render(neighbour);
  card.focus(neighbour);
}

// The heights of empty cards are those that they had at another width: give them that of a card which is filled.
export function measureAgain() {
  laidOutAt = performance.now();
  const all = [...cards.values()];
  typicalHeight = all.find((shown) => shown.hasChildNodes())?.offsetHeight ?? typicalHeight;
  for (const shown of all) if (!shown.hasChildNodes()) shown.style.height = `${typicalHeight}px`;
}

// Changes as they happen

// Follow jobs that have not ended, all on one connection: those on the screen, those that run, those that come next.
export function watch() {
  const active = [...list.children].filter((shown) => !card.ENDED.has(shown.dataset.status));
  const rank = (shown) => (inView.has(shown) ? 0 : shown.dataset.status === "queued" ? 2 : 1);
  const chosen = active.reverse().sort((a, b) => rank(a) - rank(b)).slice(0, MAX_WATCHED);
  if (isWatching(chosen, (shown) => active.length <= MAX_WATCHED || rank(shown) < 2)) return;
  stream?.source.close();
  stream = chosen.length ? openStream(chosen.map((shown) => shown.dataset.id)) : null;
}

// Check that the open stream has what must be watched, and room for little more: each connection begins with all jobs.
function isWatching(chosen, isNeeded) {
  if (!stream) return chosen.length === 0;
  if (stream.source.readyState === EventSource.CLOSED) return false;
  const watched = chosen.filter((shown) => stream.ids.has(shown.dataset.id));
  return chosen.length > 0 && watched.length >= chosen.length / 2
    && chosen.every((shown) => !isNeeded(shown) || stream.ids.has(shown.dataset.id));
}

let soon = null;
function watchSoon() {
  clearTimeout(soon);
  soon = setTimeout(watch, SCROLL_DELAY_MS);
}

function openStream(ids) {
  const source = new EventSource(`/events?jobs=${ids.join()}`);
  const opened = { ids: new Set(ids), source, hasOpened: false };
  const update = (event) => {
    const job = parse(event.data);
    if (cards.has(job.id)) show(job); // it may have been deleted meanwhile
  };
  for (const kind of ["status", "progress"]) source.addEventListener(kind, update);
  source.addEventListener("done", (event) => { update(event); watch(); });
  source.onopen = () => { opened.hasOpened = true; };
  source.onerror = () => {
    source.close(); // the next refresh opens it again
    if (opened.hasOpened && stream === opened) onLost();
  };
  return opened;
}

// A stream is refused if one of its jobs no longer exists. The newest were just loaded; look for the others.
async function removeDeleted({ ids, source }, present) {
  if ((await send(source.url, { method: "HEAD" })).status !== 404) return;
  for (const id of ids) {
    if (present.has(id)) continue;
    await call(`/jobs/${id}`).then(show, (error) => {
      if (error.status !== 404) throw error;
      remove(id);
    });
  }
}
