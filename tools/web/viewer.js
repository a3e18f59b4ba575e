// Runs once for the component; gradio gives `element` and `watch`. The contents are replaced with
// every new picture, so listeners are on the element, and what they need is looked up.
const find = (selector) => element.querySelector(selector);
const rowOf = (number) => find(`tr[data-number="${number}"]`);

let labels = null; // RGBA of the label map: red + 256 * green is the number of a pixel's segment
let chosen = 0; // the segment that was clicked, 0 for none

async function load() {
  chosen = 0;
  labels = null;
  const image = find(".labels");
  if (!image) return;
  await image.decode();
  if (!image.isConnected) return; // a newer answer has come meanwhile
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  labels = context.getImageData(0, 0, canvas.width, canvas.height);
  highlight(0);
}

const numberAt = (i) => labels.data[4 * i] + 256 * labels.data[4 * i + 1];

function numberUnder(event) {
  if (!labels || !event.target.closest(".stage")) return 0;
  const box = find("canvas").getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) / box.width) * labels.width);
  const y = Math.floor(((event.clientY - box.top) / box.height) * labels.height);
  const inside = x >= 0 && y >= 0 && x < labels.width && y < labels.height;
  return inside ? numberAt(y * labels.width + x) : 0;
}

// Darken everything but one segment; 0: nothing.
function highlight(number) {
  const canvas = find("canvas");
  if (!canvas || !labels || canvas.dataset.number === String(number)) return;
  canvas.dataset.number = number;
  const context = canvas.getContext("2d");
  const shade = context.createImageData(labels.width, labels.height);
  if (number) {
    for (let i = 0; i < labels.width * labels.height; i++) {
      shade.data[4 * i + 3] = numberAt(i) === number ? 0 : 150;
    }
  }
  context.putImageData(shade, 0, 0);
}

function choose(number) {
  chosen = number === chosen ? 0 : number;
  for (const row of element.querySelectorAll("tr[data-number]")) {
    row.classList.toggle("chosen", Number(row.dataset.number) === chosen);
  }
  const row = rowOf(chosen);
  find(".details").textContent = row ? row.dataset.details : "Click a segment for more.";
  highlight(chosen);
}

function pointAt(event) {
  const row = event.target.closest("tr[data-number]");
  const number = row ? Number(row.dataset.number) : numberUnder(event);
  const tip = find(".tip");
  highlight(number || chosen);
  if (!tip) return;
  tip.textContent = !row && number ? rowOf(number)?.dataset.tip ?? "" : "";
  if (tip.textContent) {
    const box = find(".stage").getBoundingClientRect();
    const right = box.width - tip.offsetWidth;
    tip.style.left = `${Math.max(0, Math.min(event.clientX - box.left + 14, right))}px`;
    tip.style.top = `${Math.max(0, event.clientY - box.top - 34)}px`;
  }
}

element.addEventListener("mousemove", pointAt);
element.addEventListener("mouseleave", () => {
  highlight(chosen);
  if (find(".tip")) find(".tip").textContent = "";
});
element.addEventListener("click", (event) => {
  const row = event.target.closest("tr[data-number]");
  const number = row ? Number(row.dataset.number) : numberUnder(event);
  if (number) choose(number);
});
element.addEventListener("keydown", (event) => {
  const row = event.target.closest("tr[data-number]");
  if (row && (event.key === "Enter" || event.key === " ")) {
    event.preventDefault();
    choose(Number(row.dataset.number));
  }
});
watch("value", load);
load();
