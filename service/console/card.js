// Show one job as a card.

import { ago, cost, deadline, numberInBatch, prompt, state, summary } from "./words.js";

export const ENDED = new Set(["succeeded", "failed", "cancelled"]);
const CONFIRM_MS = 3000; // how long "Delete" asks for confirmation
const COPIED_MS = 1500;

const template = document.getElementById("job");

// Return a new card. `onAction(name, card)` is called when one of its buttons is clicked.
export function create(job, onAction) {
  const card = template.content.firstElementChild.cloneNode(true);
  card.dataset.id = job.id;
  card.dataset.createdAt = job.created_at;
  card.addEventListener("click", ({ target }) => {
    const button = target.closest("button[data-action]");
    if (button) onAction(button.dataset.action, card, button);
  });
  return card;
}

export function fill(card, job) {
  const part = (name) => card.querySelector(name);
  const ended = ENDED.has(job.status);
  card.job = job;
  card.dataset.status = job.status;
  part(".status").textContent = job.status;
  part(".task").textContent = summary(job);
  part("time").dateTime = job.created_at;
  part("time").title = new Date(job.created_at).toLocaleString();
  part("time").textContent = ago(job.created_at);
  part(".prompt").textContent = prompt(job);
  part(".facts").textContent = [numberInBatch(job), deadline(job), cost(job)].filter(Boolean).join(" · ");
  part(".seed").textContent = `Seed ${job.request.seed}`;
  part(".going").hidden = ended;
  part("progress").value = job.progress?.fraction ?? 0;
  part(".phase").textContent = state(job);
  part(".error").hidden = !job.error;
  part(".error").textContent = job.error?.message ?? "";
  part(".warnings").hidden = !job.warnings.length;
  part(".warnings").textContent = job.warnings.join(" · ");
  const holds = { active: !ended, ended, result: Boolean(job.result) };
  for (const button of card.querySelectorAll("[data-when]")) button.hidden = !holds[button.dataset.when];
  setVideo(part("video"), part(".download"), job.result);
  part("video").setAttribute("aria-label", prompt(job));
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
  setTimeout(() => { delete button.dataset.confirming; button.textContent = "Delete"; }, CONFIRM_MS);
  return false;
}

export async function copy(button, text) {
  const label = button.textContent;
  await navigator.clipboard.writeText(text);
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = label; }, COPIED_MS);
}
