// One clock for every age on the page; it stands while the page is hidden.

class Clock {
  now = $state(Date.now());
  visible = $state(true);
  #timer: ReturnType<typeof setInterval> | undefined;

  start(): void {
    document.addEventListener("visibilitychange", () => this.#follow());
    this.#follow();
  }

  #follow(): void {
    this.visible = document.visibilityState === "visible";
    clearInterval(this.#timer);
    if (!this.visible) return;
    this.now = Date.now();
    this.#timer = setInterval(() => (this.now = Date.now()), 1000);
  }
}

export const clock = new Clock();
