/** Short messages about something the user did. Problems stay until closed; the rest leave. */
export interface Toast {
  id: number;
  tone: "good" | "bad" | "note";
  text: string;
  detail?: string;
  href?: string;
}

const STAY_MS = 6_000;
const AT_MOST = 4;

class Toasts {
  items = $state.raw<Toast[]>([]);
  #next = 1;

  show(toast: Omit<Toast, "id">): void {
    const id = this.#next++;
    this.items = [...this.items, { ...toast, id }].slice(-AT_MOST);
    if (toast.tone !== "bad") setTimeout(() => this.close(id), STAY_MS);
  }

  close(id: number): void {
    this.items = this.items.filter((t) => t.id !== id);
  }
}

export const toasts = new Toasts();
