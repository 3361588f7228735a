import { type DescField, type DescMethod, getOption, hasOption, type Message } from "@bufbuild/protobuf";
import {
  createRemoteJWKSet,
  errors,
  type JWTPayload,
  type JWTVerifyGetKey,
  type JWTVerifyOptions,
  jwtVerify,
  SignJWT,
} from "jose";
import { LRUCache } from "lru-cache";
import { access, Role } from "../../gen/shop/v1/access_pb.ts";
import { DomainError } from "../error.ts";

/** Who calls, as its token says; a subject that is a UUID is in lower case, as ids are. */
export type Caller = Readonly<{ subject: string; roles: ReadonlySet<Role> }>;

/** Where tokens come from: signed with a secret that we hold, or by an issuer that publishes its keys. */
export type TokenSource = Readonly<{ secret: Uint8Array }> | Readonly<{ jwksUrl: string }>;

/** What a token must carry beyond `exp`, `sub` and `roles`; left out, it may carry anything. */
export type ClaimRules = Readonly<{ issuer?: string | undefined; audience?: string | undefined }>;

export type Verifier = {
  /**
   * Reads the header `authorization`. Answers at once when it has seen the token before.
   * @throws DomainError TOKEN_MISSING, TOKEN_INVALID; ISSUER_UNAVAILABLE when the issuer's keys can't be fetched.
   */
  verify(authorization: string | undefined): Caller | Promise<Caller>;
};

const roleNames: Readonly<Record<string, Role>> = { user: Role.USER, service: Role.SERVICE, admin: Role.ADMIN };

/** Of characters; OpenID Connect allows no more, and no more can be stored with the answers to its requests. */
const MAX_SUBJECT = 255;

/** Tokens kept; at a kilobyte each some tens of megabytes at most. */
const CACHE_SIZE = 10_000;

function invalid(message: string): DomainError {
  return new DomainError("TOKEN_INVALID", message);
}

const UUID = /^[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}$/i;

function toCaller({ sub, roles }: JWTPayload): Caller {
  if (!sub || sub.length > MAX_SUBJECT || !Array.isArray(roles)) throw invalid("the token is malformed");
  // One user in one spelling, as in requests: of its data, and of the scope of its request ids.
  const subject = UUID.test(sub) ? sub.toLowerCase() : sub;
  return { subject, roles: new Set(roles.flatMap((name) => roleNames[String(name)] ?? [])) };
}

/** @throws DomainError TOKEN_MISSING when the header is not there or holds something else. */
function bearer(authorization: string | undefined): string {
  const token = authorization && /^bearer +(\S+) *$/i.exec(authorization)?.[1];
  if (!token) throw new DomainError("TOKEN_MISSING", "the call carries no bearer token");
  return token;
}

/** The issuer's keys; a token that none of them fits is the caller's fault, everything else the issuer's. */
function remoteKeys(url: string): JWTVerifyGetKey {
  const keys = createRemoteJWKSet(new URL(url));
  const callersFault = [errors.JWKSNoMatchingKey, errors.JWKSMultipleMatchingKeys, errors.JOSENotSupported];
  return (header, token) =>
    keys(header, token).catch((cause: unknown) => {
      if (callersFault.some((fault) => cause instanceof fault)) throw cause;
      const message = "the token's issuer can't be reached to check it";
      throw new DomainError("ISSUER_UNAVAILABLE", message, {}, { retryAfterMs: 1_000, cause });
    });
}

/** Checks signature and claims, and says no more about a bad token than whether it is too old. */
async function check(token: string, verified: () => Promise<{ payload: JWTPayload }>): Promise<JWTPayload> {
  try {
    return (await verified()).payload;
  } catch (error) {
    if (error instanceof DomainError) throw error;
    if (error instanceof errors.JWTExpired) throw invalid("the token has expired");
    throw invalid(token.split(".").length === 3 ? "the token is not valid" : "the token is malformed");
  }
}

/**
 * Makes the check of bearer tokens: signature by the source (HS256 for a secret; RS256, ES256, EdDSA for an issuer),
 * `exp`, `sub` and `roles` present, `iss` and `aud` as given. A good token is kept until it expires.
 */
export function createVerifier(source: TokenSource, claims: ClaimRules = {}): Verifier {
  const known = new LRUCache<string, { caller: Caller; expiresMs: number }>({ max: CACHE_SIZE });
  const options: JWTVerifyOptions = { requiredClaims: ["exp", "sub"] };
  if (claims.issuer) options.issuer = claims.issuer;
  if (claims.audience) options.audience = claims.audience;
  const keys = "jwksUrl" in source ? remoteKeys(source.jwksUrl) : undefined;
  const verified = (token: string) =>
    keys
      ? jwtVerify(token, keys, { ...options, algorithms: ["RS256", "ES256", "EdDSA"] })
      : jwtVerify(token, (source as { secret: Uint8Array }).secret, { ...options, algorithms: ["HS256"] });

  async function learn(token: string): Promise<Caller> {
    const payload = await check(token, () => verified(token));
    const caller = toCaller(payload);
    known.set(token, { caller, expiresMs: Number(payload.exp) * 1_000 });
    return caller;
  }

  return {
    verify(authorization) {
      // Not by the header: one token in many spellings of it would drive out those of all others.
      const token = bearer(authorization);
      // Peeking keeps them in the order in which they came: moving each to the front takes longer than all the rest, and one
      // that is driven out is checked once more.
      const hit = known.peek(token);
      if (!hit) return learn(token);
      if (hit.expiresMs > Date.now()) return hit.caller;
      known.delete(token);
      throw invalid("the token has expired");
    },
  };
}

export type TokenClaims = Readonly<{
  subject: string;
  roles: readonly ("user" | "service" | "admin")[];
  /** As jose reads it: "15m", "24h", "30 days". */
  ttl: string;
}> &
  ClaimRules;

/** Signs a token (HS256). @throws TypeError when the time to live can't be read. */
export function sign(secret: Uint8Array, claims: TokenClaims): Promise<string> {
  const token = new SignJWT({ roles: claims.roles })
    .setProtectedHeader({ alg: "HS256" })
    .setSubject(claims.subject)
    .setIssuedAt()
    .setExpirationTime(claims.ttl);
  if (claims.issuer) token.setIssuer(claims.issuer);
  if (claims.audience) token.setAudience(claims.audience);
  return token.sign(secret);
}

/** The access rule of one RPC, read from its option in the contract. */
export type AccessRule = Readonly<{ roles: ReadonlySet<Role>; userId: DescField | undefined; names: string }>;

/** @throws Error naming the RPC when the contract says nothing about who may call it. */
export function accessRule(method: DescMethod): AccessRule {
  const roles = hasOption(method, access) ? getOption(method, access).roles : [];
  if (roles.length === 0)
    throw new Error(`${method.parent.typeName}/${method.name} has no access rule in the contract`);
  const names = Object.keys(roleNames).filter((name) => roles.includes(roleNames[name] as Role));
  const userId = method.input.fields.find((field) => field.name === "user_id");
  return { roles: new Set(roles), userId, names: names.join(" or ") };
}

/** @throws DomainError ROLE_REQUIRED when the caller has none of the roles that the rule asks for. */
export function requireRole(rule: AccessRule, caller: Caller): void {
  for (const role of caller.roles) if (rule.roles.has(role)) return;
  throw new DomainError("ROLE_REQUIRED", `this call is for the role ${rule.names}`, { roles: rule.names });
}

function userIdOf(field: DescField, request: Message): unknown {
  return (request as unknown as Record<string, unknown>)[field.localName];
}

/** Whether the request leaves out the user that its RPC asks for. */
export function lacksUser(rule: AccessRule, request: Message): boolean {
  return rule.userId !== undefined && !userIdOf(rule.userId, request);
}

/** @throws DomainError NOT_YOURS when a caller that is let in as a user names another user. */
export function requireOwn(rule: AccessRule, caller: Caller, request: Message): void {
  if (!rule.userId) return;
  for (const role of caller.roles) if (role !== Role.USER && rule.roles.has(role)) return;
  if (userIdOf(rule.userId, request) !== caller.subject)
    throw new DomainError("NOT_YOURS", "a user acts for itself only");
}
