import { type DescFile, type DescService, toBinary } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema } from "@bufbuild/protobuf/wkt";
import type { Server, ServerWritableStream } from "@grpc/grpc-js";
import { ReflectionService } from "@grpc/reflection";
import { HealthImplementation } from "grpc-health-check";
import { file_google_rpc_error_details } from "../../gen/google/rpc/error_details_pb.ts";

type PackageDefinition = ConstructorParameters<typeof ReflectionService>[0];

/**
 * Adds grpc.health.v1.Health, all services serving. The function returned makes them NOT_SERVING and ends the watches,
 * which would else keep the server from closing.
 */
export function addHealth(server: Server, services: readonly DescService[]): () => void {
  const names = ["", ...services.map(({ typeName }) => typeName)];
  const health = new HealthImplementation(Object.fromEntries(names.map((name) => [name, "SERVING"])));
  const watches = new Set<ServerWritableStream<unknown, unknown>>();
  health.addToServer({
    addService: (definition, implementation) => {
      const watch = implementation.watch as (call: ServerWritableStream<unknown, unknown>) => void;
      server.addService(definition, {
        ...implementation,
        watch: (call: ServerWritableStream<unknown, unknown>) => {
          watches.add(call);
          call.on("cancelled", () => watches.delete(call));
          watch(call);
        },
      });
    },
  });
  return () => {
    for (const name of names) health.setStatus(name, "NOT_SERVING");
    for (const call of watches) call.end();
  };
}

function addFile(file: DescFile, files: Map<string, Buffer>): void {
  if (files.has(file.name)) return;
  files.set(file.name, Buffer.from(toBinary(FileDescriptorProtoSchema, file.proto)));
  for (const dependency of file.dependencies) addFile(dependency, files);
}

/** Adds server reflection, so that grpcurl and `buf curl` need no copy of the contract, not even for error details. */
export function addReflection(server: Server, services: readonly DescService[]): void {
  const files = new Map<string, Buffer>();
  for (const { file } of services) addFile(file, files);
  addFile(file_google_rpc_error_details, files);
  const definition = { format: "", type: {}, fileDescriptorProtos: [...files.values()] };
  new ReflectionService({ contract: definition } as unknown as PackageDefinition).addToServer(server);
}
