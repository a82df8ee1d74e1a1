/** The page's keyboard: `/` search, `j` `k` rows, `?` help. Enter and Esc are the browser's own. */

const TYPING = "input, textarea, select, [contenteditable]";

/** Rows are whatever carries `data-row`; the focus itself is the cursor. */
export function keys(target: Window, on: { help: () => void }): () => void {
  const handle = (event: KeyboardEvent) => {
    if (event.defaultPrevented || event.metaKey || event.ctrlKey || event.altKey) return;
    const at = event.target;
    if (at instanceof Element && at.matches(TYPING)) {
      if (event.key === "Escape" && at instanceof HTMLElement && at.closest("dialog") === null) at.blur();
      return;
    }
    const dialog = document.querySelector("dialog[open]");
    if (event.key === "?" && (dialog === null || dialog.hasAttribute("data-help"))) on.help();
    else if (dialog !== null) return;
    else if (event.key === "/") document.querySelector<HTMLElement>("[data-search]")?.focus();
    else if (event.key === "j") move(1);
    else if (event.key === "k") move(-1);
    else return;
    event.preventDefault();
  };
  target.addEventListener("keydown", handle);
  return () => target.removeEventListener("keydown", handle);
}

function move(step: 1 | -1): void {
  const rows = [...document.querySelectorAll<HTMLElement>("[data-row]")].filter(
    (row) => row.offsetParent !== null,
  );
  if (rows.length === 0) return;
  const now = rows.findIndex((row) => row === document.activeElement || row.contains(document.activeElement));
  const next = now === -1 ? (step === 1 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, now + step));
  const row = rows[next];
  row?.focus();
  row?.scrollIntoView({ block: "nearest" });
}
