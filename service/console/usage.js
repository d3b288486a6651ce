// Show the GPU time that was used on each day, and its cost, whenever its part of the page is opened.

import { call } from "./api.js";

const $ = (id) => document.getElementById(id);

$("usage").addEventListener("toggle", async () => {
  if (!$("usage").open) return;
  try {
    const { usage } = await call("/usage");
    $("used").replaceChildren(...usage.map(line));
    $("usage-note").textContent = usage.length ? "" : "Nothing was used in the last 31 days.";
  } catch (error) { $("usage-note").textContent = error.message; }
});

function line({ day, owner, gpu_s, costs }) {
  const amounts = Object.entries(costs).map(([currency, amount]) => `${amount.toFixed(2)} ${currency}`);
  const item = document.createElement("li");
  item.textContent = [day, owner, `${gpu_s.toFixed(1)} GPU s`, ...amounts].filter(Boolean).join(" · ");
  return item;
}
