import Model

// Another engine goes on with the mount of one that died: for this node it is a lost session, not a lost disk.
extension MirrorModule {
  mutating func engineReplaced(_ report: EngineReport, _ why: String) {
    // Not known before, or given up meanwhile: then it is only one that was found.
    guard engineReady else { return engineIsReady(report) }
    // Without the mount the guest has lost its disks all the same.
    guard report.isMounted else { return engineGone(why) }
    forgetEngine()
    engineReady = true
    engineStarting = false
    isMounted = true
    // R2: a guest that is suspended stays so until there is a right, or the session is back.
    areReadsHeld = report.areReadsHeld ?? false
    note("the engine was replaced under its mount: \(why)", .warning)
    let lost = "the engine here was replaced"
    switch phase {
    case .prim(let session), .adopting(let session):
      // R1, R9: its session died with it. ADOPT may have left: frozen, as the record says.
      sessionLost(session, lost)
    case .frozen: dropSession()
    case .alone: goOnAlone()
    case .closing(let closing): goOnClosing(closing, lost)
    case .yielding(let session):
      sessionLost(session, lost)
      engine(.unmount(force: true))
    case .target, .second:
      // A replica has no mount.
      dropSession()
      phase = .waiting
      engine(.unmount(force: true))
    case .waiting, .failed, .stopped:
      // The mount was on its way out.
      dropSession()
      engine(.unmount(force: true))
    }
  }

  /// R4 was done in this process: the right holds, only the engine has to be told again.
  private mutating func goOnAlone() {
    let isBringingUp = bringUp != nil
    dropSession()
    if isBringingUp { bringUpFresh(policy: .alone, resync: nil) } else { engine(.setPolicy(.alone)) }
    engine(.connect)
  }

  private mutating func goOnClosing(_ old: Closing, _ lost: String) {
    var closing = old
    // What the guest still writes in its shutdown.
    if closing.wasAlone, closing.step == .guest { engine(.setPolicy(.alone)) }
    if closing.session != nil {
      dropSession()
      closing.session = nil
      closingLostSession(closing, lost)
    } else if closing.step == .drain {
      engine(.drain)
    } else if closing.step == .barrier {
      syncFiles()
    }
    if case .closing(let now) = phase, now.step == .unmount { engine(.unmount(force: false)) }
  }
}
