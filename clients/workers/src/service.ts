/**
 * `env.ARTIFACTS` by a service binding: deploy this Worker once, and let others bind it.
 *
 *     "services": [{ "binding": "ARTIFACTS", "service": "artifacts", "entrypoint": "ArtifactsService",
 *                    "props": { "namespace": "agents" } }]
 */

import { WorkerEntrypoint } from "cloudflare:workers";

import { clientOf, type ArtifactsEnvironment } from "./environment.js";
import { Repo } from "./repo.js";
import type {
  Artifacts,
  ArtifactsCreateRepoResult,
  ArtifactsRepo,
  ArtifactsRepoListResult,
  CreateOptions,
  ImportParams,
  ListOptions,
} from "./types.js";

interface Props {
  namespace?: string;
}

/**
 * What crosses to the other Worker: an object with functions, whose other members are plain values.
 * A class would be a stub there, and every property a promise.
 */
function portable(repo: ArtifactsRepo): ArtifactsRepo {
  const methods = Object.getOwnPropertyNames(Repo.prototype).filter((each) => each !== "constructor");
  const bound = methods.map((name) => {
    const method = (repo as unknown as Record<string, (...args: unknown[]) => unknown>)[name];
    const call = async (...args: unknown[]): Promise<unknown> => crossing(await method?.apply(repo, args));
    return [name, call];
  });
  return { ...repo, ...Object.fromEntries(bound) } as ArtifactsRepo;
}

function crossing(value: unknown): unknown {
  const repo = (value as { repo?: unknown } | null | undefined)?.repo;
  return repo instanceof Repo ? { ...(value as object), repo: portable(repo) } : value;
}

export class ArtifactsService extends WorkerEntrypoint<ArtifactsEnvironment, Props> {
  get #artifacts(): Artifacts {
    return clientOf(this.env, this.ctx.props?.namespace);
  }

  async create(name: string, opts?: CreateOptions): Promise<ArtifactsCreateRepoResult> {
    return crossing(await this.#artifacts.create(name, opts)) as ArtifactsCreateRepoResult;
  }

  async get(name: string): Promise<ArtifactsRepo> {
    return portable(await this.#artifacts.get(name));
  }

  async list(opts?: ListOptions): Promise<ArtifactsRepoListResult> {
    return this.#artifacts.list(opts);
  }

  async import(params: ImportParams): Promise<ArtifactsCreateRepoResult> {
    return crossing(await this.#artifacts.import(params)) as ArtifactsCreateRepoResult;
  }

  async delete(name: string): Promise<boolean> {
    return this.#artifacts.delete(name);
  }
}

export default {
  /** Nobody talks to it over HTTP. */
  fetch(): Response {
    return new Response("Bind this Worker as a service.\n", { status: 404 });
  },
};
