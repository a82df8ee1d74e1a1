/** Who is signed in, in this tab. The token lives in sessionStorage: it ends with the tab. */
import { api, body, setBearer } from "./api/client";
import { asApiError, type ApiError } from "./api/problem";
import type { IssuedToken, Me, SessionInfo } from "./api/types";

const KEY = "event-gateway.token";

type DevSignIn = { user?: string; role?: Me["roles"][number] };

class Session {
  info = $state.raw<SessionInfo | null>(null);
  me = $state.raw<Me | null>(null);
  token = $state.raw<string | null>(null);
  state = $state<"starting" | "anonymous" | "signed-in" | "unreachable">("starting");
  /** Why the last session ended or the last attempt to sign in failed. */
  problem = $state.raw<ApiError | null>(null);
  expired = $state(false);

  readonly development = $derived(this.info?.mode === "development");
  readonly submits = $derived(this.me?.roles.some((r) => r === "user" || r === "operator") === true);
  readonly seesAll = $derived(
    this.me?.roles.some((r) => r === "operator" || r === "auditor") === true,
  );

  /** Asks how one signs in here and takes up the token this tab still has. */
  async start(): Promise<void> {
    this.state = "starting";
    this.problem = null;
    try {
      this.info = await body(api.GET("/api/v1/session"));
      const kept = readToken();
      if (kept === null) this.state = "anonymous";
      else await this.#take(kept);
    } catch (thrown) {
      this.problem = asApiError(thrown);
      if (this.problem.status === 401) this.#forget();
      else this.state = "unreachable";
    }
  }

  /** Development mode: one call gives a token. Without arguments the server chooses user and role. */
  async signInDev(as: DevSignIn = {}): Promise<void> {
    const issued: IssuedToken = await body(api.POST("/api/v1/session/dev", { body: as }));
    await this.#take(issued.token);
  }

  /** Token mode: the user brings a JWT. Refused ones leave the session as it was. */
  async signInToken(token: string): Promise<void> {
    const before = this.token;
    try {
      await this.#take(token.trim());
    } catch (thrown) {
      if (before === null) this.#forget();
      else await this.#take(before).catch(() => this.#forget());
      throw thrown;
    }
  }

  signOut(): void {
    this.#forget();
    this.expired = false;
    this.problem = null;
  }

  async #take(token: string): Promise<void> {
    setBearer(token, () => this.#refused());
    const me = await body(api.GET("/api/v1/me"));
    this.token = token;
    this.me = me;
    this.expired = false;
    this.problem = null;
    this.state = "signed-in";
    try {
      sessionStorage.setItem(KEY, token);
    } catch {
      // Storage is off: the session lasts until the page is left.
    }
  }

  #refused(): void {
    if (this.state === "signed-in") this.expired = true;
    this.#forget();
  }

  #forget(): void {
    setBearer(null, () => undefined);
    this.token = null;
    this.me = null;
    this.state = "anonymous";
    try {
      sessionStorage.removeItem(KEY);
    } catch {
      // Nothing was kept.
    }
  }
}

function readToken(): string | null {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

export const session = new Session();
