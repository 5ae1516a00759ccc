import Glibc
import HostSystem
import Model
import ReplicatedFiles

// An engine for the crash-point sweep: at one labelled host call its whole process stands still, as a host does at a power cut, or
// that call fails.
//   vmha-faulty-engine SOCKET record:FILE | stop:LABEL:NUMBER | ERRNO:LABEL:NUMBER | none  [now]
// Calls count from SIGUSR1 on, or from the beginning (`now`); `record` appends the label of each to FILE.

guard CommandLine.arguments.count >= 3 else { exit(2) }
let fault = Fault(CommandLine.arguments[2], isArmed: CommandLine.arguments.last == "now")
var signals = sigset_t()
sigemptyset(&signals)
sigaddset(&signals, SIGUSR1)
pthread_sigmask(SIG_BLOCK, &signals, nil)
umask(0)
ignoreBrokenPipes()

do {
  let (waited, fault) = (signals, fault)
  HostCalls.setFaultHook { label, _ in fault.meet(label) }
  try HostThread.start(name: "signals") {
    var waited = waited
    var signal: Int32 = 0
    sigwait(&waited, &signal)
    fault.arm()
  }
  let listener = try UnixSocket.listen(path: CommandLine.arguments[1])
  guard let socket = try UnixSocket.accept(listener, timeout: .seconds(10)) else { exit(1) }
  let channel = LineChannel(socket: socket)
  let engine = try Engine(clearInterval: .milliseconds(200)) { event in
    // The test is gone when nobody listens: then so is this.
    do { try channel.send(event) } catch { exit(1) }
  }
  while let command = try channel.receive(EngineCommand.self) { engine.perform(command) }
  exit(0)
} catch {
  print("vmha-faulty-engine: \(error)")
  exit(1)
}
