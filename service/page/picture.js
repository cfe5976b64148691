/** Pictures that the server renders, shown by URLs of this page alone. */

/** Shows a PNG in an `<img>`, and frees the one before it. */
export function showPicture(image, blob, alt) {
  hidePicture(image);
  image.src = URL.createObjectURL(blob);
  image.alt = alt;
  image.hidden = false;
}

/** Takes the picture away. */
export function hidePicture(image) {
  if (image.src) URL.revokeObjectURL(image.src);
  image.removeAttribute("src");
  image.alt = "";
  image.hidden = true;
}

/** What went wrong with an image, with its name where the server means the image. */
export function describeError(error, item) {
  const isOfImage = error.details?.image !== undefined || error.code === "body_too_large";
  return isOfImage ? `${item.name}: ${error.message.replace(/^image \d+ /, "it ")}` : error.message;
}

/** Tells how long the server asks to wait, in the words of a notice; "" when the wait is over. */
export function describeWait(seconds) {
  return seconds ? `The server is busy. The next attempt is in ${Math.ceil(seconds)} s.` : "";
}
