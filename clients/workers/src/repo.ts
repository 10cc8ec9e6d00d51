import type { Connection, Query } from "./connection.js";
import { ArtifactsError } from "./errors.js";
import type {
  ArtifactsCommitMetadata,
  ArtifactsComparison,
  ArtifactsCreateRepoResult,
  ArtifactsCreateTokenResult,
  ArtifactsMergeResult,
  ArtifactsRepo,
  ArtifactsRepoInfo,
  ArtifactsTokenInfo,
  ArtifactsTokenListResult,
  ArtifactsTreeEntry,
  CompareOptions,
  ForkOptions,
  LogOptions,
  MergeOptions,
  PendingRepo,
  Scope,
} from "./types.js";

interface WireInfo {
  id: string;
  name: string;
  description: string | null;
  default_branch: string;
  created_at: string;
  updated_at: string;
  last_push_at: string | null;
  source: string | null;
  read_only: boolean;
  remote: string;
}

export interface WireCreated {
  id: string;
  name: string;
  description: string | null;
  default_branch: string;
  remote: string;
  token: string;
}

interface WireToken {
  id: string;
  scope: Scope;
  state: ArtifactsTokenInfo["state"];
  created_at: string;
  expires_at: string;
}

type WireCommit = Omit<ArtifactsCommitMetadata, "authoredAt" | "committedAt"> & {
  authoredAt: string;
  committedAt: string;
};

interface WireComparison extends Omit<ArtifactsComparison, "mergeBase" | "commits"> {
  merge_base: string | null;
  commits: WireCommit[];
}

const TOKENS_PER_PAGE = 100;

export function infoOf(wire: WireInfo): ArtifactsRepoInfo {
  return {
    id: wire.id,
    name: wire.name,
    description: wire.description,
    defaultBranch: wire.default_branch,
    createdAt: wire.created_at,
    updatedAt: wire.updated_at,
    lastPushAt: wire.last_push_at,
    source: wire.source,
    readOnly: wire.read_only,
    remote: wire.remote,
  };
}

export type { WireInfo };

function commitOf(wire: WireCommit): ArtifactsCommitMetadata {
  const seconds = (time: string): number => Math.floor(Date.parse(time) / 1000);
  return { ...wire, authoredAt: seconds(wire.authoredAt), committedAt: seconds(wire.committedAt) };
}

/** `undefined` members left out. */
export function given(fields: Record<string, unknown>): object {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));
}

/** What `call` gives; `otherwise` if the server knows nothing of that name. */
export async function found<Result, Other>(
  call: Promise<Result>,
  otherwise: Other,
): Promise<Result | Other> {
  try {
    return await call;
  } catch (error) {
    if (error instanceof ArtifactsError && error.code === "NOT_FOUND") return otherwise;
    throw error;
  }
}

/** The result of a create, fork or import. Its handle does not show in JSON. */
export function createdOf(
  connection: Connection,
  wire: WireCreated,
  readOnly = false,
): ArtifactsCreateRepoResult {
  const { id, name, description, remote, token } = wire;
  const known = { id, name, description, defaultBranch: wire.default_branch, remote };
  const fields = { ...known, token };
  const now = new Date().toISOString();
  const info = { ...known, createdAt: now, updatedAt: now, lastPushAt: null, source: null };
  const repo = new Repo(connection, { ...info, readOnly });
  return Object.defineProperty(fields, "repo", { value: repo }) as ArtifactsCreateRepoResult;
}

/** A handle. Its metadata are own members, so `JSON.stringify` shows them. */
export class Repo implements ArtifactsRepo {
  readonly #connection: Connection;
  readonly #path: string;
  id!: string;
  name!: string;
  description!: string | null;
  defaultBranch!: string;
  createdAt!: string;
  updatedAt!: string;
  lastPushAt!: string | null;
  source!: string | null;
  readOnly!: boolean;
  remote!: string;

  constructor(connection: Connection, info: ArtifactsRepoInfo) {
    this.#connection = connection;
    this.#path = `/repos/${encodeURIComponent(info.name)}`;
    Object.assign(this, info);
  }

  async info(): Promise<ArtifactsRepoInfo> {
    return infoOf((await this.#connection.json<WireInfo>("GET", this.#path)).result);
  }

  async createToken(scope?: Scope, ttl?: number): Promise<ArtifactsCreateTokenResult> {
    const body = given({ repo: this.name, scope, ttl });
    const { result } = await this.#connection.json<WireToken & { plaintext: string }>(
      "POST",
      "/tokens",
      { body },
    );
    const { id, plaintext, expires_at: expiresAt } = result;
    return { id, plaintext, scope: result.scope, expiresAt };
  }

  async listTokens(): Promise<ArtifactsTokenListResult> {
    const tokens: ArtifactsTokenInfo[] = [];
    for (let page = 1; ; page += 1) {
      const { result } = await this.#connection.json<WireToken[]>("GET", `${this.#path}/tokens`, {
        query: { per_page: TOKENS_PER_PAGE, page },
      });
      for (const { id, scope, state, created_at, expires_at } of result) {
        tokens.push({ id, scope, state, createdAt: created_at, expiresAt: expires_at });
      }
      if (result.length < TOKENS_PER_PAGE) return { tokens, total: tokens.length };
    }
  }

  async revokeToken(tokenOrId: string): Promise<boolean> {
    const path = `/tokens/${encodeURIComponent(tokenOrId)}`;
    return found(
      this.#connection.json("DELETE", path).then(() => true),
      false,
    );
  }

  async fork(name: string, opts: ForkOptions = {}): Promise<ArtifactsCreateRepoResult> {
    const { description, readOnly, defaultBranchOnly } = opts;
    const body = given({
      name,
      description,
      read_only: readOnly,
      default_branch_only: defaultBranchOnly,
    });
    const path = `${this.#path}/fork`;
    const { result } = await this.#connection.json<WireCreated>("POST", path, { body });
    return createdOf(this.#connection, result, readOnly);
  }

  async readBlob(hash: string): Promise<Blob | null> {
    return found(this.#connection.bytes(`${this.#path}/blob/${encodeURIComponent(hash)}`), null);
  }

  async readTree(hash: string): Promise<ArtifactsTreeEntry[] | null> {
    const path = `${this.#path}/tree/${encodeURIComponent(hash)}`;
    const answer = await found(this.#connection.json<ArtifactsTreeEntry[]>("GET", path), null);
    return answer && answer.result;
  }

  async readCommit(hash: string): Promise<ArtifactsCommitMetadata | null> {
    const path = `${this.#path}/commit/${encodeURIComponent(hash)}`;
    const answer = await found(this.#connection.json<WireCommit>("GET", path), null);
    return answer && commitOf(answer.result);
  }

  async readFile({ ref, path }: { ref: string; path: string }): Promise<Blob | null> {
    return found(this.#connection.bytes(`${this.#path}/file`, { ref, path }), null);
  }

  async log(opts: LogOptions = {}): Promise<ArtifactsCommitMetadata[]> {
    const query: Query = { ref: opts.ref, limit: opts.limit, offset: opts.offset };
    const path = `${this.#path}/log`;
    const { result } = await this.#connection.json<WireCommit[]>("GET", path, { query });
    return result.map(commitOf);
  }

  async compare(opts: CompareOptions = {}): Promise<ArtifactsComparison> {
    const { head, base, headRepo, limit } = opts;
    const query: Query = { head, base, head_repo: headRepo, limit };
    const path = `${this.#path}/compare`;
    const { result } = await this.#connection.json<WireComparison>("GET", path, { query });
    const { merge_base: mergeBase, commits, ...rest } = result;
    return { ...rest, mergeBase, commits: commits.map(commitOf) };
  }

  async merge(head: string, opts: MergeOptions = {}): Promise<ArtifactsMergeResult> {
    const { headRepo, base, method, message, expected, expectedHead } = opts;
    const names = { head_repo: headRepo, expected_head: expectedHead };
    const body = given({ head, base, method, message, expected, ...names });
    const path = `${this.#path}/merge`;
    return (await this.#connection.json<ArtifactsMergeResult>("POST", path, { body })).result;
  }
}

const METHODS: ReadonlySet<string> = new Set(
  Object.getOwnPropertyNames(Repo.prototype).filter((name) => name !== "constructor"),
);

/** Lets members of a handle be used before it is there: methods, and promises of properties. */
export function pendingRepo(promise: Promise<Repo>): PendingRepo {
  return new Proxy(promise, {
    get(target, key) {
      if (typeof key === "symbol" || key in target) {
        const member: unknown = Reflect.get(target, key);
        return typeof member === "function" ? member.bind(target) : member;
      }
      if (METHODS.has(key)) {
        const method = key as "info";
        return (...args: []) => target.then((repo) => repo[method](...args));
      }
      return target.then((repo) => repo[key as keyof ArtifactsRepoInfo]);
    },
  }) as unknown as PendingRepo;
}
