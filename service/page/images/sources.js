/** Where images come from: a file dialog, the clipboard, or files dropped anywhere on the page. */

import { announce, byId } from "../dom.js";
import { notify } from "../notices.js";

const IMAGE_NAME = /\.(jpe?g|png|webp|bmp|avif|gif|tiff?|hei[cf])$/i;

/** Adds to `library` what the user picks, pastes or drops. */
export function acceptFiles(library) {
  const take = (files) => addImages(library, [...files]);
  const input = byId("file-input");
  input.addEventListener("change", () => {
    take(input.files);
    input.value = "";
  });
  addEventListener("paste", (event) => take(event.clipboardData.files));
  let depth = 0;
  const veil = (shown) => document.body.classList.toggle("dropping", shown);
  addEventListener("dragenter", (event) => {
    if (event.dataTransfer.types.includes("Files")) veil(++depth > 0);
  });
  addEventListener("dragleave", (event) => {
    if (event.dataTransfer.types.includes("Files")) veil(--depth > 0);
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    veil(false);
    take(event.dataTransfer.files);
  });
}

function addImages(library, files) {
  const isImage = (file) => file.type.startsWith("image/") || IMAGE_NAME.test(file.name);
  const images = files.filter(isImage);
  const others = files.filter((file) => !isImage(file)).map((file) => file.name);
  notify("files", others.length ? `${others.join(", ")}: by type and name no image, so it is left out.` : "");
  library.add(images);
  if (images.length) announce(`${images.length} ${images.length === 1 ? "image" : "images"} added`);
}
