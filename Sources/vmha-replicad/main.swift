import CKeeper
import Glibc
import HostSystem
import Model
import ReplicatedFiles

// Engine of one module: mounts its files on the primary, follows the primary on the other node. Controlled by vmhad through
// a unix socket, and independent of it: a guest does not notice a restart of vmhad.
//
// Two processes. The first one is the keeper: it holds the lock, the socket and the FUSE connection, and starts the second one,
// the engine proper (`--kept`); when that dies under a mount it starts another one, which goes on with the mount.

/// 2: wrong usage, as the shell's own commands say it.
func usage(_ why: String) -> Never {
  Log.note("vmha-replicad: \(why); usage: vmha-replicad --module NAME [--root DIR] [--restarts NUMBER]")
  exit(2)
}

var module: ModuleName?
var root = ""
/// How often in a minute a dead engine is replaced under its mount; 0 = never, as on kernels before 6.9.
var restarts = Int32(VMHA_KEPT_RESTARTS_DEFAULT)
/// Descriptors of a keeper: listener, lock, memory, socket.
var kept: [Int32]?
var arguments = CommandLine.arguments.dropFirst()
while let option = arguments.popFirst() {
  guard let value = arguments.popFirst() else { usage("\(option) needs a value, or is unknown") }
  switch option {
  case "--module":
    guard let name = ModuleName(value) else { usage("'\(value)' is not a module's name") }
    module = name
  case "--root": root = value
  case "--restarts":
    guard let number = Int32(value), (0...Int32(VMHA_KEPT_RESTARTS_MAX)).contains(number) else {
      usage("--restarts is a number from 0 to \(VMHA_KEPT_RESTARTS_MAX)")
    }
    restarts = number
  case "--kept":
    let numbers = value.split(separator: ",").compactMap { Int32($0) }
    guard numbers.count == 4 else { usage("--kept is for the keeper only") }
    kept = numbers
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

guard let kept else {
  do {
    let socket = HostPaths(root: root).engineSocket(module)
    try makeFolders(of: socket)
    let place = try ControlServer.open(path: socket)
    // Read once: a program that is installed over this one is what the next engine runs.
    let program = try runningProgram()
    exit(vmha_keep(program, CommandLine.unsafeArgv, place.listener, place.lock, restarts))
  } catch {
    Log.note("vmha-replicad: \(error)")
    exit(1)
  }
}

// Before any thread starts: they all inherit that these signals are for one thread only.
var stops = sigset_t()
sigemptyset(&stops)
sigaddset(&stops, SIGTERM)
sigaddset(&stops, SIGINT)
sigaddset(&stops, SIGHUP)
sigaddset(&stops, SIGUSR2)
pthread_sigmask(SIG_BLOCK, &stops, nil)

do {
  let place = ControlServer.Place(listener: kept[0], lock: kept[1])
  for descriptor in [place.listener, place.lock] { _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC) }
  let server = try ControlServer(
    place, kept: try Kept(memory: kept[2], socket: kept[3]), endsWithProcess: restarts == 0)
  let waited = stops
  try HostThread.start(name: "signals") {
    var waited = waited
    while true {
      var signal: Int32 = 0
      guard sigwait(&waited, &signal) == 0, signal != SIGHUP else { continue }
      if let why = signal == SIGUSR2 ? server.engine?.makeRoom() : server.engine?.leaveIfUnused() {
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
