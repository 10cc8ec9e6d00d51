import type { ArtifactsConflict } from "./types.js";

const CODES: Readonly<Record<number, string>> = {
  10000: "AUTHENTICATION",
  10100: "INVALID_INPUT",
  10101: "INVALID_REPO_NAME",
  10103: "INVALID_TTL",
  10104: "INVALID_URL",
  10106: "REMOTE_AUTH_REQUIRED",
  10200: "NOT_FOUND",
  10201: "ALREADY_EXISTS",
  10202: "CONFLICT",
  10203: "MERGE_CONFLICT",
  10302: "IMPORT_IN_PROGRESS",
  10303: "FORK_IN_PROGRESS",
  10400: "INTERNAL_ERROR",
  10401: "UPSTREAM_UNAVAILABLE",
  10402: "MEMORY_LIMIT",
  10403: "STORAGE_LIMIT",
  10405: "METHOD_NOT_ALLOWED",
  10408: "TOO_SLOW",
  10429: "RATE_LIMITED",
  10503: "BUSY",
};

/** The server refused, or (`code` UNAVAILABLE, `status` 0) could not be reached. */
export class ArtifactsError extends Error {
  override readonly name = "ArtifactsError";

  constructor(
    message: string,
    readonly code: string,
    readonly numericCode: number,
    readonly status: number,
    /** What does not merge, where `code` is MERGE_CONFLICT. */
    readonly conflicts: readonly ArtifactsConflict[] = [],
  ) {
    super(message);
  }
}

interface ErrorItem {
  code?: number;
  message?: string;
  conflicts?: ArtifactsConflict[];
}

/** The error in an envelope, or in whatever came instead of one. */
export function errorOf(status: number, body: unknown): ArtifactsError {
  const errors = (body as { errors?: ErrorItem[] } | null)?.errors;
  const first = Array.isArray(errors) ? errors[0] : undefined;
  const number = first?.code ?? 0;
  const message = first?.message ?? `the server answered ${status}`;
  return new ArtifactsError(message, CODES[number] ?? "UNKNOWN", number, status, first?.conflicts);
}
