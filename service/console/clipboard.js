// Copy a text to the clipboard, which browsers give only to pages from https and from this machine. Without it, show
// the text selected.

const COPIED_MS = 1500;

const $ = (id) => document.getElementById(id);
const dialog = $("copying");

export async function copy(button, text) {
  if (!await written(text)) { showSelected(text, button); return; }
  const label = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = label; }, COPIED_MS);
}

async function written(text) {
  try { await navigator.clipboard.writeText(text); } catch { return false; }
  return true;
}

function showSelected(text, button) {
  $("copied-text").value = text;
  dialog.showModal();
  $("copied-text").select();
  dialog.addEventListener("close", () => button.focus(), { once: true }); // it was disabled when the dialog opened
}

$("copying-close").addEventListener("click", () => dialog.close());
