// The page and its parameters, in the address behind the `#`.

class Router {
  path = $state("live");
  query = $state.raw(new URLSearchParams());

  start(): void {
    addEventListener("hashchange", () => this.#read());
    this.#read();
  }

  #read(): void {
    const [path = "", query = ""] = location.hash.replace(/^#\/?/, "").split("?");
    this.path = path || "live";
    this.query = new URLSearchParams(query);
  }

  get page(): string {
    return this.path.split("/")[0] ?? "live";
  }

  /** The part of the path behind the page, decoded. */
  get item(): string {
    const rest = this.path.split("/").slice(1).join("/");
    try {
      return decodeURIComponent(rest);
    } catch {
      return "";
    }
  }

  go(path: string): void {
    location.hash = `#/${path}`;
  }
}

export const router = new Router();
