import MirrorModule
import Model

/// Directives as short lines for transcripts.
extension Names {
  mutating func describe(_ directive: Directive) -> String? {
    switch directive {
    case .persist(let record): "persist \(describe(record))"
    case .persistWish(let wish): "persistWish \(wish.started ? "started" : "stopped") v\(wish.version)"
    case .keepLimits(let limits):
      "keepLimits \(limits.restarts.count) restarts" + (limits.gaveUpAt == nil ? "" : ", gave up")
        + (limits.peerGaveUpAt == nil ? "" : ", peer gave up") + ", \(limits.takeovers.count) takeovers"
        + (limits.stopped == nil ? "" : ", stopped")
    case .startEngine: "startEngine"
    case .killEngine: "killEngine"
    case .engine(let command): "engine \(describe(command))"
    case .sendPeer(let session, let message): "send \(name("s", session.rawValue)) \(describe(message))"
    case .startGuest: "startGuest"
    case .stopGuest: "stopGuest"
    case .destroyGuest: "destroyGuest"
    case .archiveBranch(let generation, let kept): "archiveBranch \(describe(generation)) for \(describe(kept))"
    case .resolveSplit(let mine, let theirs): "resolveSplit \(describe(mine)) for \(describe(theirs))"
    case .suspendGuest: "suspendGuest"
    case .resumeGuest: "resumeGuest"
    case .askConsent(let request):
      "askConsent \(name("n", request.nonce)) \(describe(request.generation))"
        + (request.guestRunning ? " guestRunning" : "") + (request.stopping ? " stopping" : "")
    case .replyConsent(_, .granted(let nonce, let generation, _)):
      "replyConsent \(name("n", nonce)) granted \(describe(generation))"
    case .replyConsent(_, .refused(let nonce, let why)): "replyConsent \(name("n", nonce)) refused: \(why)"
    case .readWitness: "readWitness"
    case .swapWitness(_, let expect, let register):
      "swapWitness \(expect == 0 ? "create" : "compare") g\(register.number)(\(name("b", register.branch.rawValue)))"
    case .fencePeer: "fencePeer"
    case .ping: "ping"
    case .answer(_, .accepted(let text)): "answer accepted: \(text)"
    case .answer(_, .refused(let what, let why, let next)): "answer refused: \(what): \(why); \(next)"
    case .journal(let severity, let reason):
      "\(severity.rawValue.uppercased()) \(describe(text: reason.sentence))" + (reason.rule.map { " (\($0))" } ?? "")
    case .wake: nil
    }
  }

  mutating func describe(_ generation: Generation) -> String {
    "g\(generation.number)(\(generation.branch == .empty ? "-" : name("b", generation.branch.rawValue)))"
  }

  /// Sentences carry branches in hexadecimal.
  private mutating func describe(text: String) -> String {
    var words: [String] = []
    for word in text.split(separator: " ", omittingEmptySubsequences: false) {
      let digits = word.drop { $0 == "(" }.prefix { $0.isHexDigit }
      if digits.count == 16, let value = UInt64(digits, radix: 16) {
        let rest = word.drop { $0 == "(" }.dropFirst(16)
        words.append((word.hasPrefix("(") ? "(" : "") + name("b", value) + rest)
      } else {
        words.append(String(word))
      }
    }
    return words.joined(separator: " ")
  }

  private mutating func describe(_ record: DurableRecord) -> String {
    "\(describe(record.generation)) \(record.standing.rawValue)"
      + (record.peerOutdated.map { " peerOutdated=\($0.rawValue)" } ?? "")
      + (record.consentedTo.map { " consentedTo=\(describe($0))" } ?? "") + (record.wroteLast ? " wroteLast" : "")
      + (record.claim.map { " claim=\(name("b", $0.rawValue))" } ?? "")
      + (record.witness.map { " witness=\($0.cluster).\($0.revision)" } ?? "")
      + (record.recordLost == true ? " recordLost" : "")
  }

  private mutating func describe(_ message: PeerMessage) -> String {
    switch message {
    case .hello(let hello):
      "HELLO \(describe(hello.generation)) \(hello.standing.rawValue)" + (hello.isAlone ? " alone" : "")
        + (hello.guestRunning ? " guestRunning" : "") + (hello.continuous ? " continuous" : "")
        + (hello.wroteLast ? " wroteLast" : "") + (hello.recordLost == true ? " recordLost" : "")
        + (hello.provesNewest == true && !hello.isAlone ? " provesNewest" : "")
    case .targetReady: "TARGET-READY"
    case .adopt(let generation, _, _): "ADOPT \(describe(generation))"
    case .adopted: "ADOPTED"
    case .gaveUp: "GAVE-UP"
    case .token: "TOKEN"
    case .giveUp(let branch, let kept): "GIVE-UP \(describe(branch)) for \(describe(kept))"
    case .goOn(let kept): "GO-ON \(describe(kept))"
    case .adoptWitness(let mark): "ADOPT-WITNESS \(mark.cluster).\(mark.revision)"
    case .witnessAdopted(let mark): "WITNESS-ADOPTED \(mark.cluster).\(mark.revision)"
    }
  }

  private mutating func describe(_ command: EngineCommand) -> String {
    switch command {
    case .configure: "configure"
    case .connect: "connect"
    case .endSession: "endSession"
    case .send: "send"
    case .acceptReplication(let session): "acceptReplication \(name("s", session.rawValue))"
    case .mount: "mount"
    case .unmount(let force): force ? "unmount force" : "unmount"
    case .setPolicy(let policy): "setPolicy \(describe(policy))"
    case .startResync(let session, let comparesEverything):
      "startResync \(name("s", session.rawValue))" + (comparesEverything ? " everything" : "")
    case .flushBarrier(let session): "flushBarrier \(name("s", session.rawValue))"
    case .drain: "drain"
    case .syncFiles: "syncFiles"
    case .clearIntents(let session): "clearIntents \(name("s", session.rawValue))"
    case .verify(let request): "verify \(name("s", request.session.rawValue))"
    case .stopVerify: "stopVerify"
    case .confirmSession(let session): "confirmSession \(name("s", session.rawValue))"
    case .report: "report"
    case .exit: "exit"
    }
  }

  private mutating func describe(_ policy: AcknowledgePolicy) -> String {
    switch policy {
    case .frozen: "frozen"
    case .alone: "alone"
    case .resyncing(let session): "resyncing \(name("s", session.rawValue))"
    case .settling(let session): "settling \(name("s", session.rawValue))"
    case .both(let session): "both \(name("s", session.rawValue))"
    }
  }
}
