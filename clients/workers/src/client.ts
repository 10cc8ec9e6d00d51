import { Connection, type ArtifactsOptions } from "./connection.js";
import {
  createdOf,
  found,
  given,
  infoOf,
  pendingRepo,
  Repo,
  type WireCreated,
  type WireInfo,
} from "./repo.js";
import type {
  Artifacts,
  ArtifactsCreateRepoResult,
  ArtifactsRepoListResult,
  CreateOptions,
  ImportParams,
  ListOptions,
  PendingRepo,
} from "./types.js";

/** The repositories of one namespace, over `fetch`: in Node, in a Worker, in a browser. */
export class ArtifactsClient implements Artifacts {
  readonly #connection: Connection;

  constructor(options: ArtifactsOptions) {
    this.#connection = new Connection(options);
  }

  async create(name: string, opts: CreateOptions = {}): Promise<ArtifactsCreateRepoResult> {
    const { description, readOnly, setDefaultBranch } = opts;
    const body = given({
      name,
      description,
      read_only: readOnly,
      default_branch: setDefaultBranch,
    });
    const { result } = await this.#connection.json<WireCreated>("POST", "/repos", { body });
    return createdOf(this.#connection, result, readOnly);
  }

  get(name: string): PendingRepo {
    return pendingRepo(this.#get(name));
  }

  async #get(name: string): Promise<Repo> {
    const path = `/repos/${encodeURIComponent(name)}`;
    const { result } = await this.#connection.json<WireInfo>("GET", path);
    return new Repo(this.#connection, infoOf(result));
  }

  async list(opts: ListOptions = {}): Promise<ArtifactsRepoListResult> {
    const answer = await this.#connection.json<WireInfo[]>("GET", "/repos", {
      query: { limit: opts.limit, cursor: opts.cursor },
    });
    const repos = answer.result.map(infoOf);
    const total = answer.result_info?.total_count ?? repos.length;
    const cursor = answer.result_info?.cursor;
    return cursor ? { repos, total, cursor } : { repos, total };
  }

  async import({ source, target }: ImportParams): Promise<ArtifactsCreateRepoResult> {
    const { description, readOnly } = target.opts ?? {};
    const path = `/repos/${encodeURIComponent(target.name)}/import`;
    const body = given({ ...source, description, read_only: readOnly });
    const { result } = await this.#connection.json<WireCreated>("POST", path, { body });
    return createdOf(this.#connection, result, readOnly);
  }

  async delete(name: string): Promise<boolean> {
    const path = `/repos/${encodeURIComponent(name)}`;
    return found(
      this.#connection.json("DELETE", path).then(() => true),
      false,
    );
  }
}
