import { ArtifactsError, errorOf } from "./errors.js";

/** Where the server is, and who asks. */
export interface ArtifactsOptions {
  /** The origin of the server, such as `https://git.example.org`. */
  url: string;
  accountId: string;
  apiToken: string;
  /** Default: `default`. */
  namespace?: string;
  /** Another `fetch`. */
  fetch?: typeof fetch;
}

export interface Envelope<Result> {
  result: Result;
  result_info?: { cursor?: string | null; total_count?: number | null } | null;
}

export type Query = Record<string, string | number | undefined>;

const TRIES = 5;
const LONGEST_MS = 20_000;

/** Requests below one namespace. 429 and 503 are tried again: the server did nothing then. */
export class Connection {
  readonly #base: string;
  readonly #headers: Record<string, string>;
  readonly #fetch: typeof fetch;

  constructor(options: ArtifactsOptions) {
    const { url, accountId, apiToken, namespace = "default" } = options;
    const account = `${url.replace(/\/+$/, "")}/client/v4/accounts/${encodeURIComponent(accountId)}`;
    this.#base = `${account}/artifacts/namespaces/${encodeURIComponent(namespace)}`;
    this.#headers = { Authorization: `Bearer ${apiToken}` };
    const given = options.fetch;
    this.#fetch = given ?? ((input, init) => fetch(input, init));
  }

  async json<Result>(
    method: string,
    path: string,
    { body, query }: { body?: object; query?: Query } = {},
  ): Promise<Envelope<Result>> {
    const response = await this.#send(method, path, query, body);
    return (await response.json()) as Envelope<Result>;
  }

  async bytes(path: string, query?: Query): Promise<Blob> {
    return (await this.#send("GET", path, query, undefined)).blob();
  }

  async #send(
    method: string,
    path: string,
    query: Query | undefined,
    body: object | undefined,
  ): Promise<Response> {
    const given = Object.entries(query ?? {}).filter(([, value]) => value !== undefined);
    const search = new URLSearchParams(given.map(([key, value]) => [key, String(value)]));
    const url = `${this.#base}${path}${given.length ? `?${search}` : ""}`;
    const init: RequestInit = { method, headers: this.#headers };
    if (body !== undefined) {
      init.headers = { ...this.#headers, "Content-Type": "application/json" };
      init.body = JSON.stringify(body);
    }
    for (let attempt = 1; ; attempt += 1) {
      const response = await this.#once(url, init);
      if (response.ok) return response;
      const busy = response.status === 429 || response.status === 503;
      if (!busy || attempt === TRIES) {
        throw errorOf(response.status, await response.json().catch(() => null));
      }
      await response.body?.cancel();
      const told = Number(response.headers.get("Retry-After") ?? "");
      const wait = told > 0 ? told * 1000 : 200 * 2 ** attempt;
      await new Promise((resolve) => setTimeout(resolve, Math.min(LONGEST_MS, wait)));
    }
  }

  async #once(url: string, init: RequestInit): Promise<Response> {
    try {
      return await this.#fetch(url, init);
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      throw new ArtifactsError(`the server cannot be reached: ${reason}`, "UNAVAILABLE", 0, 0);
    }
  }
}
