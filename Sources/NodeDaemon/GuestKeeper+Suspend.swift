import Glibc
import HostSystem
import MirrorModule
import Model
import VirtualMachines

// R2: a guest that is cut off stands still. Kept apart from pauses by libvirt (a disk error) or the operator by a note of
// this host's present boot, written before the guest is suspended and removed behind its resumption.
extension GuestKeeper {
  var isSuspendedByUs: Bool { access(paths.suspension(module), F_OK) == 0 }

  func forgetSuspension() {
    resumeIsDone()
    let note = paths.suspension(module)
    guard unlink(note) != 0, errno != ENOENT else { return }
    tell(.warning, "\(note) cannot be removed: \(HostError.system("guest.suspension", path: note, errno: errno))")
  }

  private static let poll: Duration = .milliseconds(20)

  func suspendNow() {
    do {
      try DurableFile.makeFolder("\(paths.runtime)/suspended", mode: 0o755)
      try DurableFile.write([], to: paths.suspension(module), mode: 0o644)
      try suspendAndSee()
    } catch {
      forgetSuspension()
      if actual() == .off { return }  // `look` tells
      return emit(.guestSuspendFailed(why: "\(error)"))
    }
    believe(.suspended)
    emit(.guestSuspended)
  }

  /// QEMU stops the virtual CPUs first and then waits for requests under way, which may hang as long as the freeze does:
  /// libvirt knows the guest to be paused long before its call returns.
  private func suspendAndSee() throws {
    // One from before may still hang; it does the same.
    let call = suspendCall ?? OneShot<Result<Void, any Error>>()
    if suspendCall == nil {
      suspendCall = call
      try HostThread.start(name: "suspend-\(module.text)") { [hypervisor, module] in
        call.fulfil(Result { try hypervisor.suspend(module.text) })
      }
    }
    while true {
      if let answer = call.wait(Self.poll) {
        suspendCall = nil
        // A time limit that was reached says nothing of the virtual CPUs.
        if case .failure(let error) = answer, actual() != .suspended { throw error }
        return
      }
      if actual() == .suspended { return }
      if isUrgent { throw HostError(.closed, "guest.suspend", path: module.text, "it is being destroyed") }
    }
  }

  /// Takes back `suspendNow`, and nothing else: a guest that is paused for another reason stays paused.
  func resumeNow() {
    resumeIsDone()
    guard isSuspendedByUs else { return }
    // Else it could be carried out behind this one. Returns by its own limit.
    while let call = suspendCall {
      if isUrgent { return }  // `destroy` is next
      if call.wait(Self.poll) != nil { suspendCall = nil }
    }
    do { try hypervisor.resume(module.text) } catch {
      switch actual() {
      case .off: return  // `look` tells
      case .running: break
      default: return emit(.guestReleaseFailed(why: "\(error)"))
      }
    }
    forgetSuspension()
    believe(.running)
    emit(.guestReleased)
  }
}
