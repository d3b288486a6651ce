// Say that a job was queued beside the button that requested it: its card may be off the screen or hidden by the filter.

import * as list from "./list.js";
import { say } from "./news.js";
import { queued } from "./words.js";

let shown = null; // the place of the last notice

export function show(place, job) {
  hide();
  const text = [queued(job), !list.find(job.id) && list.isFiltered() && "The filter hides it."].filter(Boolean).join(" ");
  place.querySelector("p").textContent = text;
  place.querySelector("button").onclick = () => { hide(); list.goTo(job.id); };
  place.hidden = false;
  place.scrollIntoView({ block: "nearest" });
  shown = place;
  say(text);
}

export function hide() {
  if (shown) shown.hidden = true;
  shown = null;
}
