import Model

extension SimEngine {
  /// Engine.confirmSession: a process that stood still hears its peer's old words first. It must have looked at the clock since, and not
  /// have given the session up then.
  func confirmSession(_ id: SessionID) {
    guard session?.id == id, policy == .both(id) else {
      return fail("confirmSession", "the session is over, or writes do not need both copies in it")
    }
    guard world.now - lastLook <= World.silenceMax.nanoseconds / 2 else {
      return fail("confirmSession", "this engine did not run")
    }
    guard world.now - lastHeard < World.suspendAfter.nanoseconds else {
      return fail("confirmSession", "the peer was not heard")
    }
    tell(.sessionConfirmed(id))
  }
}
