/** The types of the Artifacts binding, as its documentation has them. Times are ISO 8601, UTC. */

export type RepoName = string;
export type Cursor = string;
export type Scope = "read" | "write";

export interface ArtifactsRepoInfo {
  id: string;
  name: RepoName;
  description: string | null;
  defaultBranch: string;
  createdAt: string;
  updatedAt: string;
  lastPushAt: string | null;
  /** `artifacts:NAMESPACE/NAME` of a fork, `git:URL` of an import. */
  source: string | null;
  readOnly: boolean;
  remote: string;
}

export interface ArtifactsCreateRepoResult {
  id: string;
  name: RepoName;
  description: string | null;
  defaultBranch: string;
  remote: string;
  /** A write token for a day. It is shown this once. */
  token: string;
  /** A handle of the new repository. */
  readonly repo: ArtifactsRepo;
}

export interface ArtifactsRepoListResult {
  repos: ArtifactsRepoInfo[];
  total: number;
  cursor?: Cursor;
}

export interface ArtifactsCreateTokenResult {
  id: string;
  /** It is shown this once. */
  plaintext: string;
  scope: Scope;
  expiresAt: string;
}

export interface ArtifactsTokenInfo {
  id: string;
  scope: Scope;
  state: "active" | "expired" | "revoked";
  createdAt: string;
  expiresAt: string;
}

export interface ArtifactsTokenListResult {
  tokens: ArtifactsTokenInfo[];
  total: number;
}

export type ArtifactsTreeEntryType = "tree" | "blob" | "symlink" | "gitlink" | "exec";

export interface ArtifactsTreeEntry {
  name: string;
  mode: string;
  hash: string;
  type: ArtifactsTreeEntryType;
}

export interface ArtifactsPerson {
  name: string;
  email: string;
}

export interface ArtifactsCommitMetadata {
  hash: string;
  treeHash: string;
  message: string;
  author: ArtifactsPerson;
  committer: ArtifactsPerson;
  parents: string[];
  /** Seconds since 1970. */
  authoredAt: number;
  committedAt: number;
}

export interface CreateOptions {
  readOnly?: boolean;
  description?: string;
  setDefaultBranch?: string;
}

export interface ListOptions {
  limit?: number;
  cursor?: Cursor;
}

export interface ImportParams {
  source: {
    url: string;
    branch?: string;
    depth?: number;
    /** Told to the source, this once. */
    username?: string;
    password?: string;
  };
  target: { name: RepoName; opts?: { description?: string; readOnly?: boolean } };
}

export interface ForkOptions {
  description?: string;
  readOnly?: boolean;
  defaultBranchOnly?: boolean;
}

export interface LogOptions {
  ref?: string;
  limit?: number;
  offset?: number;
}

export interface ArtifactsConflict {
  path: string;
  /** In git's words: `contents`, `modify/delete` … */
  kind: string;
}

export interface CompareOptions {
  head?: string;
  base?: string;
  /** The fork that `head` is in: `name`, or `namespace/name`. */
  headRepo?: string;
  limit?: number;
}

export interface ArtifactsComparison {
  status: "identical" | "ahead" | "behind" | "diverged" | "unrelated";
  base: string;
  head: string;
  mergeBase: string | null;
  ahead: number;
  behind: number;
  mergeable: boolean;
  conflicts: ArtifactsConflict[];
  commits: ArtifactsCommitMetadata[];
}

export interface MergeOptions {
  headRepo?: string;
  base?: string;
  method?: "merge" | "fast-forward" | "squash";
  message?: string;
  /** The commits that base and head must be at. */
  expected?: string;
  expectedHead?: string;
}

export interface ArtifactsMergeResult {
  outcome: "merged" | "fast-forwarded" | "squashed" | "up-to-date";
  before: string;
  hash: string;
}

/** A handle. It has what the server knew of the repository when it was asked for. */
export interface ArtifactsRepo extends ArtifactsRepoInfo {
  info(): Promise<ArtifactsRepoInfo>;
  createToken(scope?: Scope, ttl?: number): Promise<ArtifactsCreateTokenResult>;
  listTokens(): Promise<ArtifactsTokenListResult>;
  /** False if the server knows no such token. */
  revokeToken(tokenOrId: string): Promise<boolean>;
  fork(name: RepoName, opts?: ForkOptions): Promise<ArtifactsCreateRepoResult>;
  readBlob(hash: string): Promise<Blob | null>;
  readTree(hash: string): Promise<ArtifactsTreeEntry[] | null>;
  readCommit(hash: string): Promise<ArtifactsCommitMetadata | null>;
  readFile(args: { ref: string; path: string }): Promise<Blob | null>;
  log(opts?: LogOptions): Promise<ArtifactsCommitMetadata[]>;
  /** How a branch, or one of a fork, lies to another one. Changes nothing. */
  compare(opts?: CompareOptions): Promise<ArtifactsComparison>;
  /** Merge a branch, or one of a fork. Throws MERGE_CONFLICT, with `conflicts`. */
  merge(head: string, opts?: MergeOptions): Promise<ArtifactsMergeResult>;
}

/** What `get` returns: a promise of a handle, whose members work without waiting for it, too. */
export type PendingRepo = Promise<ArtifactsRepo> & {
  [Key in keyof ArtifactsRepo]: ArtifactsRepo[Key] extends (...args: infer Args) => infer Result
    ? (...args: Args) => Result
    : Promise<ArtifactsRepo[Key]>;
};

/** What `env.ARTIFACTS` is: the repositories of one namespace. */
export interface Artifacts {
  create(name: RepoName, opts?: CreateOptions): Promise<ArtifactsCreateRepoResult>;
  /** Throws NOT_FOUND if there is none. */
  get(name: RepoName): PendingRepo;
  list(opts?: ListOptions): Promise<ArtifactsRepoListResult>;
  import(params: ImportParams): Promise<ArtifactsCreateRepoResult>;
  /** False if there never was one of that name. */
  delete(name: RepoName): Promise<boolean>;
}
