/** The agents this gateway is configured with; read once a session, they change with its restart. */
import { api, body } from "../api/client";
import { asApiError, type ApiError } from "../api/problem";
import type { Agent } from "../api/types";

class Agents {
  items = $state.raw<Agent[] | null>(null);
  problem = $state.raw<ApiError | null>(null);
  #asked: Promise<void> | null = null;

  read(): Promise<void> {
    this.#asked ??= this.#read();
    return this.#asked;
  }

  async again(): Promise<void> {
    this.#asked = this.#read();
    await this.#asked;
  }

  async #read(): Promise<void> {
    try {
      this.items = (await body(api.GET("/api/v1/agents"))).items;
      this.problem = null;
    } catch (thrown) {
      this.problem = asApiError(thrown);
      this.#asked = null;
    }
  }
}

export const agents = new Agents();
