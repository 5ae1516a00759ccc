import Model

// R11: this node's own disk under its guest.
extension MirrorModule {
  /// It failed, in sync with the peer or frozen since.
  mutating func giveUpDisk(_ what: String) {
    if guest.isPresent { countDeath() }
    note("\(what); \(settings.peerName) has everything and takes the module", .alarm, rule: "R11")
    endSession()
    distrustCopy(peerHasAll: false)
    offer()
  }

  /// It hangs, in sync with the peer. Nothing that comes before the record needs this disk, which may never answer again: the session
  /// is over (R1), so nothing is acknowledged any more; the guest is destroyed, and what it waits for ends with its mount. The record
  /// may wait for ever: then this node has no right that it could use. Nothing is lost before it: the page cache holds all that
  /// was acknowledged, and without it this node is not continuous.
  private mutating func giveUpHungDisk(_ what: String) {
    let hadGuest = guest.isPresent
    note("\(what); \(settings.peerName) has everything and takes the module", .alarm, rule: "R11")
    endSession()
    destroyWithoutDisks()
    if isMounted { engine(.unmount(force: true)) }
    distrustCopy(peerHasAll: false)
    offer(isLeaving: true)
    if hadGuest { countDeath() }
  }

  mutating func diskHangs(_ milliseconds: Int64) {
    let isNews = diskTrouble == nil
    let what = "the disk here has not answered the guest for \(milliseconds / 1000) s"
    diskTrouble = what
    if case .prim = phase, peerAlive == true { return giveUpHungDisk(what) }
    guard isNews, ownsGuest else { return }
    note(
      "\(what); the guest stays here: \(settings.peerName) is not in sync, or cannot take it now", .alarm, rule: "R11")
  }

  mutating func diskAnswers() {
    guard diskTrouble != nil else { return }
    diskTrouble = nil
    note("the disk here answers again", .notice, rule: "R11")
  }

  /// The guest is off, and its mount does not end because the disk hangs: a mount that stays would make this node refuse its consent.
  /// A killed engine does nothing more, whatever its last requests to the disk still do: they are marked (R3), and this copy is
  /// resynchronised.
  mutating func endHungEngine() {
    guard offers, isMounted, diskTrouble != nil else { return }
    note("the engine waits for the disk and is killed", .warning, rule: "R11")
    out.append(.killEngine)
    forgetEngine()
    restartEngine()
  }
}
