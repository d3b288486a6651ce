// The console uses the same API as any other client. This module connects the parts of the page.

import { call, callOrNull, isOutage, NetworkError, post, send } from "./api.js";
import * as batch from "./batch.js";
import * as card from "./card.js";
import * as clipboard from "./clipboard.js";
import * as compare from "./compare.js";
import { curl } from "./curl.js";
import * as library from "./library.js";
import * as list from "./list.js";
import * as queued from "./queued.js";
import * as request from "./request.js";
import * as session from "./session.js";
import { submit } from "./submission.js";
import "./usage.js";
import { source } from "./words.js";

const REFRESH_MS = 10000; // jobs on the page that have not ended are followed without refreshing
const RETRY_MS = 3000; // while the service cannot be reached
const GRID = "grid";

const $ = (id) => document.getElementById(id);
const form = $("request");
let signedIn = null; // the session: its owner and rights
let isCapabilityKnown = false;
let isDown = false; // the last call found that the service could not be reached

async function refresh() {
  try {
    await list.refresh();
    if (isDown || !$("locked").hidden) {
      isDown = false;
      $("locked").hidden = true;
      if (!signedIn) await loadSession();
    }
    const ready = (await send("/readyz?workers=1")).ok;
    if (!isCapabilityKnown) await loadCapability();
    const outlook = isCapabilityKnown ? "new jobs wait" : "jobs are accepted once one has started";
    health(ready, ready ? "ready" : `no worker is ready; ${outlook}`);
  } catch (error) { showOutage(error); }
}

function showOutage(error) {
  isDown = isOutage(error);
  if (error.status === 401) {
    if ($("locked").hidden) showKeyForm(); // once: it can be closed
    $("locked").hidden = false;
    $("empty").hidden = true;
    showSession(null); // it has ended
  }
  const reason = error.status === 401 ? "an API key is required" : error.message;
  health(false, isDown ? `${reason}; trying again` : reason);
}

async function loadCapability() {
  const capability = await callOrNull("/capability");
  if (!capability) return; // no worker has registered yet
  request.showCapability(capability);
  isCapabilityKnown = true;
}

function health(good, text) {
  if ($("health").textContent !== text) $("health").textContent = text; // it is announced each time that it is set
  $("health").className = good ? "good" : isDown ? "bad down" : "bad";
}

async function run(button, action, place = "problem") {
  const hadFocus = button === document.activeElement;
  button.disabled = true; // takes the focus away
  try { await action(); } catch (error) { showProblem(error.message, place); } finally {
    button.disabled = false;
    if (hadFocus && [document.body, button].includes(document.activeElement)) restoreFocus(button);
  }
}

function restoreFocus(button) {
  const shown = button.closest(".job");
  if (button.isConnected && button.checkVisibility()) button.focus();
  else if (shown?.isConnected) card.focus(shown);
}

function showProblem(message, place = "problem") {
  $(place).textContent = message;
  $(place).hidden = !message;
  if (message) $(place).scrollIntoView({ block: "nearest" });
}

// The API key

function showKeyForm(visible = true) {
  $("key").hidden = !visible;
  $("keys").setAttribute("aria-expanded", visible);
}

$("keys").addEventListener("click", () => {
  showKeyForm($("key").hidden);
  if (!$("key").hidden) $("key").elements.key.focus();
});

$("key").addEventListener("keydown", ({ key }) => {
  if (key !== "Escape") return;
  showKeyForm(false);
  $("keys").focus();
});

$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = $("key").elements.key.value.trim();
  $("key").reset();
  run($("key").querySelector("button"), async () => {
    showProblem("", "key-problem");
    await session.signIn(key);
    showKeyForm(false);
    $("keys").focus();
    await loadSession();
    await list.reload();
    await refresh();
  }, "key-problem");
});

$("sign-out").addEventListener("click", () => run($("sign-out"), async () => {
  await session.signOut();
  request.forgetDraft();
  location.reload(); // leaves nothing of the owner on the page
}));

async function loadSession() {
  showSession(await session.current());
  if (signedIn) library.open(signedIn.owner).catch(() => {}); // what could not be moved is moved at the next visit
}

function showSession(current) {
  signedIn = current;
  $("account").hidden = !signedIn?.owner; // without API keys there is no owner
  $("signed-in").textContent = signedIn?.is_admin ? `${signedIn.owner} (admin)` : signedIn?.owner;
  showOwners(Boolean(signedIn?.is_admin && signedIn.owner));
  const high = form.elements.priority.querySelector("[value=high]");
  high.disabled = signedIn?.high_priority_allowed === false;
  high.textContent = high.disabled ? "high: not allowed for this key" : "high";
  if (high.disabled && high.selected) form.elements.priority.value = "normal";
}

// Let an admin filter the jobs by owner, and show whose they are.
function showOwners(areShown) {
  const { owner } = $("filter").elements;
  owner.hidden = !areShown;
  if (!areShown) owner.value = "";
  $("jobs").classList.toggle("of-all-owners", areShown);
}

// Requesting a video

form.addEventListener("submit", (event) => {
  event.preventDefault();
  showProblem("");
  queued.hide();
  run(form.querySelector("button.main"), async () => {
    const text = form.elements.prompt.value;
    const job = await sendOnceReachable(request.body());
    if (!job) return;
    library.rememberPrompt(text);
    await showQueued(job, $("queued"));
  });
});

// Show a new job in the list and beside the button that requested it.
async function showQueued(job, place) {
  const isFiltered = list.isFiltered();
  if (!isFiltered) { list.show(job); list.watch(); }
  if (isFiltered || job.batch) await refresh(); // the service tells what matches the filter, and the other videos of a request
  queued.show(place, job);
}

// Submit a request. While the service cannot be reached, try again until the user stops it; return null then.
async function sendOnceReachable(body) {
  let isStopped = false;
  const stop = () => { isStopped = true; };
  $("stop-waiting").addEventListener("click", stop);
  try {
    for (;;) {
      try { return await submit("/generate", body); } catch (error) {
        if (!isOutage(error)) throw error;
        showOutage(error);
        showWaiting(`Not sent: ${error.message}. The request is sent as soon as that is possible.`);
      }
      await pauseOr("online", $("stop-waiting"));
      if (isStopped) return null;
    }
  } finally {
    $("stop-waiting").removeEventListener("click", stop);
    showWaiting("");
  }
}

// Wait until the next attempt: for a while, or until the browser is online again or the button is clicked.
function pauseOr(event, button) {
  return new Promise((done) => {
    const timer = setTimeout(finish, RETRY_MS);
    function finish() {
      clearTimeout(timer);
      window.removeEventListener(event, finish);
      button.removeEventListener("click", finish);
      done();
    }
    window.addEventListener(event, finish);
    button.addEventListener("click", finish);
  });
}

function showWaiting(text) {
  if ($("waiting-text").textContent !== text) $("waiting-text").textContent = text;
  $("waiting").hidden = !text;
}

// The outcome of an earlier attempt would stand beside the browser's own error, or beside what is entered next.
for (const kind of ["input", "invalid"]) {
  form.addEventListener(kind, () => { showProblem(""); queued.hide(); }, { capture: true });
}

// What the buttons of a job do

const ACTIONS = {
  cancel: async (job) => list.show(await post(`/jobs/${job.id}/cancel`)),
  repeat: async (job, { shown }) => showQueued(
    await submit(`/jobs/${job.id}/retry`, { seed: null }), shown.querySelector(".queued")),
  batch: (job) => batch.open(job.batch.id),
  source: (job) => list.goTo(source(job).jobId).catch((error) => {
    throw error.code === "job_not_found" ? new Error("That video has been deleted.") : error;
  }),
  edit: (job) => request.enterJob(job),
  continue: (job) => request.startFrom(
    { field: "video", value: { job: job.id }, label: "The end of that video" }, job, "video_continuation"),
  refine: (job) => request.startFrom({ field: "video", value: { job: job.id }, label: "That video" }, job, "refine"),
  frame: (job, { frame }) => request.startFrom(
    { field: "image", value: { job: job.id, frame }, label: `Frame ${frame} of that video` }, job, "image_to_video"),
  compare: (job, { button }) => compare.toggle(job, button),
  curl: (job, { button }) => clipboard.copy(button, curl(job, location.origin, Boolean(signedIn?.owner))),
  delete: async (job, { button }) => {
    if (!card.isConfirmed(button)) return;
    await call(`/jobs/${job.id}`, { method: "DELETE" });
    compare.forget(job.id);
    list.remove(job.id, true); // the button had the focus before it was disabled
    await refresh();
  },
};

function act(name, shown, button) {
  const frame = name === "frame" ? card.shownFrame(shown) : null;
  run(button, async () => {
    try { await ACTIONS[name](shown.job, { button, shown, frame }); } catch (error) {
      if (error.code === "job_not_found") list.remove(shown.job.id, true); // it was deleted elsewhere
      throw error;
    }
  });
}

$("cancel-batch").addEventListener("click", ({ target }) => run(target, batch.cancel));

// A grid of videos, or a list

function showAsGrid(isGrid) {
  $("jobs").classList.toggle(GRID, isGrid);
  $("grid").setAttribute("aria-pressed", isGrid);
  localStorage.setItem(GRID, isGrid ? "yes" : "");
  list.measureAgain();
}

$("grid").addEventListener("click", () => showAsGrid(!$("jobs").classList.contains(GRID)));
showAsGrid(Boolean(localStorage.getItem(GRID)));

// Keep the page up to date

list.start({ onAction: act, onError: showOutage, onLost: keepFresh });
library.start({
  entered: request.options,
  ofEntries: request.optionsOf,
  onPreset: request.enterOptions,
  onPrompt: (text) => { request.enter({ prompt: text }); form.elements.prompt.focus(); },
  onError: (error) => showProblem(error?.message ?? ""),
});

let timer;
async function keepFresh() {
  clearTimeout(timer);
  if (!document.hidden) await refresh();
  clearTimeout(timer); // another call may have come first
  timer = setTimeout(keepFresh, isDown ? RETRY_MS : REFRESH_MS);
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) keepFresh(); });
window.addEventListener("online", keepFresh);
window.addEventListener("offline", () => showOutage(new NetworkError()));
session.forgetKeys();
loadSession().catch(() => {}); // keepFresh shows that the service cannot be reached
keepFresh();
