// Shows each rendered mail in its frame, one after the other: a form has one submission under way at a time.

const buttons = [...document.querySelectorAll("button[data-show]")];

function showNext() {
  const button = buttons.shift();
  if (!button) return;
  document.getElementsByName(button.formTarget)[0].addEventListener("load", showNext, { once: true });
  button.form.requestSubmit(button);
  button.hidden = true;
}

showNext();
