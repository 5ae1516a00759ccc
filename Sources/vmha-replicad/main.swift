import Glibc
import HostSystem
import Model
import ReplicatedFiles

// Engine of one module: mounts its files on the primary, follows the primary on the other node. Controlled by vmhad through
// a unix socket, and independent of it: a guest does not notice a restart of vmhad.

/// 2: wrong usage, as the shell's own commands say it.
func usage(_ why: String) -> Never {
  Log.note("vmha-replicad: \(why); usage: vmha-replicad --module NAME [--root DIR]")
  exit(2)
}

var module: ModuleName?
var root = ""
var arguments = CommandLine.arguments.dropFirst()
while let option = arguments.popFirst() {
  guard let value = arguments.popFirst() else { usage("\(option) needs a value, or is unknown") }
  switch option {
  case "--module":
    guard let name = ModuleName(value) else { usage("'\(value)' is not a module's name") }
    module = name
  case "--root": root = value
  default: usage("unknown option \(option)")
  }
}
guard let module else { usage("--module is missing") }

// Modes are the guest's, exactly.
umask(0)
ignoreBrokenPipes()

// Every file of a tree may need a descriptor.
var limit = rlimit()
if getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 {
  limit.rlim_cur = limit.rlim_max
  setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
}

// Before any thread starts: they all inherit that these signals are for one thread only.
var stops = sigset_t()
sigemptyset(&stops)
sigaddset(&stops, SIGTERM)
sigaddset(&stops, SIGINT)
sigaddset(&stops, SIGHUP)
pthread_sigmask(SIG_BLOCK, &stops, nil)

do {
  let socket = HostPaths(root: root).engineSocket(module)
  try makeFolders(of: socket)
  let server = try ControlServer(path: socket)
  let waited = stops
  try HostThread.start(name: "signals") {
    var waited = waited
    while true {
      var signal: Int32 = 0
      guard sigwait(&waited, &signal) == 0, signal != SIGHUP else { continue }
      if let why = server.engine?.leaveIfUnused() {
        Log.note("does not stop on signal \(signal): \(why)")
      }
    }
  }
  server.run()
} catch {
  Log.note("vmha-replicad: \(error)")
  exit(1)
}

/// The runtime folder is empty after a boot.
func makeFolders(of path: String) throws {
  let parts = path.split(separator: "/").dropLast()
  var folder = path.hasPrefix("/") ? "" : "."
  for part in parts {
    folder += "/\(part)"
    guard mkdir(folder, 0o755) == 0 || errno == EEXIST else {
      throw HostError.system("mkdir", path: folder, errno: errno)
    }
  }
}
