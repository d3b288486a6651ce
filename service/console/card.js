// Show one job as a card. A card far from the screen is empty: it keeps its place and its height, and little else.

import { isChosen } from "./compare.js";
import { ago, cost, deadline, numberInBatch, prompt, source, state, summary } from "./words.js";

export const ENDED = new Set(["succeeded", "failed", "cancelled"]);
const CONFIRM_MS = 3000; // how long "Delete" asks for confirmation

const template = document.getElementById("job");

// Return a new card, which is empty. `onAction(name, card)` is called when one of its buttons is clicked.
export function create(job, onAction) {
  const card = document.createElement("li");
  card.className = "job";
  card.dataset.id = job.id;
  card.dataset.createdAt = job.created_at;
  card.tabIndex = -1; // gets the focus of an action that disappears
  card.addEventListener("click", ({ target }) => {
    const button = target.closest("button[data-action]");
    if (button) onAction(button.dataset.action, card, button);
  });
  return card;
}

// Give a card its content.
export function render(card) {
  if (card.hasChildNodes()) return;
  card.append(template.content.cloneNode(true));
  card.style.height = "";
  fill(card, card.job);
}

// Remove the content of a card, unless it is in use. It keeps this height, in pixels.
export function empty(card, height) {
  const video = card.querySelector("video");
  if (!video || card.contains(document.activeElement) || !video.paused) return;
  card.style.height = `${height}px`;
  card.replaceChildren();
}

// Show the current state of a job.
export function fill(card, job) {
  card.job = job;
  card.dataset.status = job.status;
  if (!card.hasChildNodes()) return;
  const part = (name) => card.querySelector(name);
  const ended = ENDED.has(job.status);
  const focused = card.contains(document.activeElement) ? document.activeElement : null;
  part(".status").textContent = job.status;
  part(".task").textContent = summary(job);
  part("time").dateTime = job.created_at;
  part("time").title = new Date(job.created_at).toLocaleString();
  part("time").textContent = ago(job.created_at);
  part(".prompt").textContent = prompt(job);
  part(".facts").textContent = [deadline(job), cost(job)].filter(Boolean).join(" · ");
  part(".seed").textContent = `Seed ${job.request.seed}`;
  part(".owner").textContent = job.owner;
  part(".batch").hidden = !job.batch;
  part(".batch").textContent = numberInBatch(job);
  part(".source").hidden = !source(job);
  part(".source").textContent = source(job)?.text ?? "";
  part(".going").hidden = ended;
  part("progress").value = job.progress?.fraction ?? 0;
  part(".phase").textContent = state(job);
  part(".error").hidden = !job.error;
  part(".error").textContent = job.error?.message ?? "";
  part(".warnings").hidden = !job.warnings.length;
  part(".warnings").textContent = job.warnings.join(" · ");
  const isMade = Boolean(job.result);
  const holds = { active: !ended, ended, result: isMade, refinable: isMade && !job.request.refinement };
  for (const button of card.querySelectorAll("[data-when]")) button.hidden = !holds[button.dataset.when];
  part("[data-action=compare]").setAttribute("aria-pressed", isChosen(job.id));
  setVideo(part("video"), part(".download"), job.result);
  part("video").setAttribute("aria-label", prompt(job));
  if (focused?.hidden) focus(card);
}

export function focus(card) {
  (card.querySelector(".actions button:not([hidden], :disabled)") ?? card).focus();
}

function setVideo(video, link, result) {
  video.hidden = link.hidden = !result;
  if (!result || video.getAttribute("src") === result.video_url) return;
  [video.width, video.height] = [result.width, result.height]; // reserves the space, so that the page does not move when it is loaded
  video.src = link.href = result.video_url;
  video.poster = result.thumbnail_url;
  link.download = "";
}

// Return the number of the frame that the card's video shows.
export function shownFrame(card) {
  const { fps, num_frames } = card.job.result;
  return Math.min(Math.round(card.querySelector("video").currentTime * fps), num_frames - 1);
}

// Ask for a second click. Return true at the second one.
export function isConfirmed(button) {
  if (button.dataset.confirming) return true;
  button.dataset.confirming = "yes";
  button.textContent = "Delete permanently?";
  const ask = () => { delete button.dataset.confirming; button.textContent = "Delete"; };
  setTimeout(ask, CONFIRM_MS);
  button.addEventListener("keydown", ({ key }) => { if (key === "Escape") ask(); }, { once: true });
  return false;
}
